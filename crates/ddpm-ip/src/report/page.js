"use strict";
// The slider shows of each run the newest grid up to its step.
function show(slider) {
  const step = Number(slider.dataset.steps.split(",")[slider.value]);
  slider.parentElement.querySelector("output").textContent = step;
  for (const figure of document.querySelectorAll(".grids figure")) {
    const grids = [...figure.querySelectorAll("img")];
    const shown = grids.filter((grid) => Number(grid.dataset.step) <= step).pop() || grids[0];
    for (const grid of grids) grid.hidden = grid !== shown;
    figure.querySelector(".at").textContent = shown.dataset.step;
  }
}
document.addEventListener("input", (event) => { if (event.target.id === "step") show(event.target); });
