"use strict";
// Every page: one button for all code, wide tables that the keyboard can scroll, and provenance that is printed though it is folded.
{
  const code = document.querySelectorAll("details.code");
  const button = document.getElementById("show-code");
  if (code.length > 0) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const show = button.textContent === "Show code";
      for (const cell of code) cell.open = show;
      button.textContent = show ? "Hide code" : "Show code";
    });
  }
  function reachTables() {
    for (const table of document.querySelectorAll(".table")) {
      if (table.scrollWidth > table.clientWidth) {
        table.tabIndex = 0;
        table.setAttribute("role", "group");
        table.setAttribute("aria-label", "Table that scrolls sideways");
      } else {
        for (const name of ["tabindex", "role", "aria-label"]) table.removeAttribute(name);
      }
    }
  }
  reachTables();
  addEventListener("resize", reachTables);
  const provenance = document.querySelector("details.provenance");
  addEventListener("beforeprint", () => {
    provenance.dataset.open = provenance.open;
    provenance.open = true;
  });
  addEventListener("afterprint", () => {
    provenance.open = provenance.dataset.open === "true";
  });
}
