// Looks every few seconds whether the runs have gone on, and keeps what the reader has chosen.
async function look() {
  const note = document.getElementById("note");
  try {
    const answer = await fetch("/content" + location.search, { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
    if (answer.ok) {
      const before = document.getElementById("step");
      const newest = !before || before.value === before.max;
      const step = before && before.dataset.steps.split(",")[before.value];
      const open = [...document.querySelectorAll("details")].map((details) => details.open);
      const main = document.querySelector("main");
      const scrolled = [...main.querySelectorAll(".scroll")].map((part) => part.scrollLeft);
      main.innerHTML = await answer.text();
      document.querySelectorAll("details").forEach((details, at) => { details.open = open[at] || false; });
      main.querySelectorAll(".scroll").forEach((part, at) => { part.scrollLeft = scrolled[at] || 0; });
      const slider = document.getElementById("step");
      if (slider && !newest) {
        const at = slider.dataset.steps.split(",").indexOf(step);
        if (at >= 0) { slider.value = at; show(slider); }
      }
      tag = answer.headers.get("ETag");
    }
    if (answer.ok || answer.status === 304) note.textContent = "Live; last looked at " + new Date().toLocaleTimeString() + ".";
    else note.textContent = await answer.text();
  } catch {
    note.textContent = "`ddpm-ip watch` does not answer: it was stopped, or the connection broke. The page shows what was last seen.";
  }
  setTimeout(look, document.hidden ? 15000 : 2000);
}
setTimeout(look, 2000);
