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
  const find = document.getElementById("find");
  if (find) {
    const input = find.querySelector("input");
    const groups = [...document.querySelectorAll("details.group")].map((group) => ({
      group,
      name: group.querySelector("summary").textContent.toLowerCase(),
      cards: [...group.querySelectorAll(".card")].map((card) => ({ card, text: card.textContent.toLowerCase() })),
    }));
    find.hidden = false;
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let found = 0;
      let all = 0;
      for (const { group, name, cards } of groups) {
        let here = 0;
        for (const { card, text } of cards) {
          card.hidden = !words.every((word) => text.includes(word) || name.includes(word));
          here += !card.hidden;
        }
        group.hidden = here === 0;
        group.open = words.length > 0 && here > 0;
        found += here;
        all += cards.length;
      }
      find.querySelector("span").textContent = words.length > 0 ? `${found} of ${all} samples` : "";
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
