"use strict";
// Draws the figures, from specifications in the page or in scripts that pages share. Colours are variables of the style
// sheet, so that dark mode and print need nothing here.
document.addEventListener("DOMContentLoaded", () => {
  for (const figure of document.querySelectorAll("figure.chart")) {
    const canvas = figure.querySelector(".canvas");
    const failed = (error) => {
      console.error(error);
      canvas.remove();
      figure.querySelectorAll("details").forEach((numbers) => { numbers.open = true; });
    };
    const inPage = figure.querySelector("script[type='application/json']");
    const specification = inPage ? JSON.parse(inPage.textContent) : window.aitiaCharts?.[figure.id];
    if (!window.vegaEmbed || !specification) {
      failed(new Error(`the figure ${figure.id} cannot be drawn: a file of assets/ is missing`));
      continue;
    }
    window.vegaEmbed(canvas.firstElementChild, specification, { actions: false, ast: true, renderer: "svg", tooltip: { theme: "page" } })
      .then(() => { figure.dataset.drawn = ""; }, failed);
  }
});
