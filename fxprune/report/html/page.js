"use strict";
(() => {
  const root = document.documentElement;
  for (const part of document.querySelectorAll("#theme, .filter, .tools button")) part.hidden = false;

  document.getElementById("theme").addEventListener("click", () => {
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    root.dataset.theme = (root.dataset.theme || system) === "dark" ? "light" : "dark";
  });

  for (const tools of document.querySelectorAll(".tools")) {
    const [outermost, ...inside] = document.getElementById(tools.dataset.for).querySelectorAll("details");
    tools.addEventListener("click", (event) => {
      const wanted = event.target.dataset.open;
      if (!wanted) return;
      if (outermost) outermost.open = true;
      for (const one of inside) one.open = wanted === "yes";
    });
  }

  for (const form of document.querySelectorAll(".filter")) {
    const items = [...document.getElementById(form.dataset.for).children];
    const boxes = [...form.querySelectorAll("[type=checkbox]")];
    const code = form.querySelector("select");
    const search = form.querySelector("[type=search]");
    const told = form.querySelector("output");
    const texts = items.map((item) => item.textContent.toLowerCase());
    const update = () => {
      const kinds = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
      const sought = search.value.trim().toLowerCase();
      let shown = 0;
      items.forEach((item, i) => {
        const fits = (!boxes.length || kinds.has(item.dataset.kind)) &&
          (!code || !code.value || code.value === item.dataset.code) && texts[i].includes(sought);
        item.hidden = !fits;
        shown += fits;
      });
      told.textContent = `${shown} of ${items.length} shown`;
    };
    form.addEventListener("input", update);
    form.addEventListener("submit", (event) => event.preventDefault());
    update();
  }
})();
