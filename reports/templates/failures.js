"use strict";
// The table of failures: sorted, filtered, searched and shown in pages, from rows in the page. Text is only ever set as
// text, never as markup.
const order = new Intl.Collator(undefined, { numeric: true });
const shown = (value, column) =>
  value === null ? "–" : column.kind === "share" ? Math.round(100 * value) + "%" : String(value);

function make(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function compare(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  return typeof a === "number" && typeof b === "number" ? a - b : order.compare(String(a), String(b));
}

function build(box) {
  const { columns, rows, folder, caption } = JSON.parse(box.querySelector("script").textContent);
  const words = rows.map((row) => row.map((value, i) => shown(value, columns[i])).join("\n").toLowerCase());
  const filters = new Map();
  let kept = rows.map((_, i) => i);
  let sorted = { column: -1, down: false };
  let page = 0;
  let search = "";
  let size = 25;

  const status = box.querySelector("[role=status]");
  const body = make("tbody");
  const headers = columns.map((column, i) => {
    const button = make("button", { type: "button", textContent: column.title });
    button.addEventListener("click", () => {
      sorted = { column: i, down: sorted.column === i && !sorted.down };
      update();
    });
    return make("th", { scope: "col" }, button);
  });
  const table = make("table", {}, make("caption", { textContent: caption, className: "hidden" }),
    make("thead", {}, make("tr", {}, ...headers)), body);
  box.querySelector(".scroll").append(table);

  function update() {
    kept = [];
    for (let i = 0; i < rows.length; i++) {
      let keep = words[i].includes(search);
      for (const [column, value] of filters) keep &&= String(rows[i][column]) === value;
      if (keep) kept.push(i);
    }
    const { column, down } = sorted;
    if (column >= 0) kept.sort((a, b) => (down ? -1 : 1) * compare(rows[a][column], rows[b][column]) || a - b);
    headers.forEach((header, i) =>
      header.setAttribute("aria-sort", i !== column ? "none" : down ? "descending" : "ascending"));
    page = 0;
    draw();
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(kept.length / size));
    page = Math.min(Math.max(page, 0), pages - 1);
    const first = page * size;
    const some = kept.slice(first, first + size);
    body.replaceChildren(...some.map((i) => make("tr", {}, ...rows[i].map((value, j) => {
      const text = shown(value, columns[j]);
      if (columns[j].kind !== "link") return make("td", { textContent: text });
      return make("td", {}, make("a", { href: folder + encodeURIComponent(value) + ".html", textContent: text }));
    }))));
    const range = kept.length ? `, ${first + 1} to ${first + some.length} shown` : "";
    status.textContent = `${kept.length} of ${rows.length} failure${rows.length === 1 ? "" : "s"}${range}`;
    back.disabled = page === 0;
    on.disabled = page === pages - 1;
    place.textContent = `page ${page + 1} of ${pages}`;
  }

  const controls = box.querySelector(".controls");
  const field = make("input", { type: "search" });
  field.addEventListener("input", () => { search = field.value.toLowerCase(); update(); });
  controls.append(make("label", {}, "search", field));
  columns.forEach((column, i) => {
    const values = [...new Set(rows.map((row) => row[i]))].sort(compare);
    if (!column.filter) return;
    const select = make("select", {}, make("option", { value: "", textContent: "all" }), ...values.map((value) =>
      make("option", { value: "=" + String(value), textContent: shown(value, column) })));
    select.addEventListener("change", () => {
      if (select.value) filters.set(i, select.value.slice(1));
      else filters.delete(i);
      update();
    });
    controls.append(make("label", {}, column.title, select));
  });
  const sizes = make("select", {}, ...[25, 100, rows.length].map((n, i) =>
    make("option", { value: n, textContent: i < 2 ? n : "all" })));
  sizes.addEventListener("change", () => { size = Math.max(1, Number(sizes.value)); page = 0; draw(); });

  const back = make("button", { type: "button", textContent: "Previous" });
  const on = make("button", { type: "button", textContent: "Next" });
  const place = make("span");
  back.addEventListener("click", () => { page -= 1; draw(); });
  on.addEventListener("click", () => { page += 1; draw(); });
  const pager = box.querySelector(".pager");
  pager.append(back, place, on, make("label", {}, "rows a page", sizes));
  pager.hidden = controls.hidden = false;
  update();
  box.dataset.ready = "";
}

document.querySelectorAll(".failures").forEach(build);
