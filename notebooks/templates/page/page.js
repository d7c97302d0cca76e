"use strict";
// Every page: one button for all code, and what is folded away is printed where it says where numbers come from.
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
  const provenance = document.querySelector("details.provenance");
  addEventListener("beforeprint", () => {
    provenance.dataset.open = provenance.open;
    provenance.open = true;
  });
  addEventListener("afterprint", () => {
    provenance.open = provenance.dataset.open === "true";
  });
}
