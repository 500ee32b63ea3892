"use strict";
// Plays the failing episode: a large picture with buttons and a slider above the strip of all its pictures.
const player = document.querySelector(".player");
if (player) {
  const steps = [...document.querySelectorAll(".strip:not(.training) li")];
  const picture = player.querySelector("img");
  const slider = player.querySelector("input");
  const play = player.querySelector("[data-play]");
  const status = player.querySelector("[role=status]");
  let timer = null;

  function show(number) {
    const step = steps[number];
    picture.src = step.querySelector("img").src;
    const decisive = step.classList.contains("decisive");
    picture.alt = step.querySelector("img").alt;
    status.textContent = step.querySelector("p").textContent + (decisive ? " (decisive step)" : "");
    player.classList.toggle("decisive", decisive);
    slider.value = number;
    for (const other of steps) other.classList.toggle("shown", other === step);
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
    status.setAttribute("aria-live", "polite");
  }

  function move(by) {
    const next = Number(slider.value) + by;
    if (next < 0 || next >= steps.length) stop();
    else show(next);
  }

  play.addEventListener("click", () => {
    if (timer) { stop(); return; }
    if (Number(slider.value) === steps.length - 1) show(0);
    status.setAttribute("aria-live", "off");  // a reader is not told every picture of a running episode
    play.textContent = "Pause";
    timer = setInterval(() => move(1), 500);
  });
  for (const button of player.querySelectorAll("[data-move]")) {
    button.addEventListener("click", () => { stop(); move(Number(button.dataset.move)); });
  }
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  player.hidden = false;
  show(0);
}
