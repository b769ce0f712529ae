/* Words of the glossary tell what they mean: under the pointer, under the focus, at a first tap.
   Without this script the definition is the link's title, which a pointer alone can see. */
function glossary() {
  const tip = document.createElement("div");
  tip.id = "definition";
  tip.className = "mathjax_process";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  document.body.append(tip);
  let shown = null; // the link that the tip is of
  let leaving;

  function place() {
    const link = shown.getClientRects()[0], room = document.documentElement.clientWidth;
    tip.style.left = `${scrollX + Math.max(8, Math.min(link.left, room - tip.offsetWidth - 8))}px`;
    const below = link.bottom + tip.offsetHeight + 8 < innerHeight;
    tip.style.top = `${scrollY + (below ? link.bottom + 4 : link.top - tip.offsetHeight - 4)}px`;
  }
  function hide() {
    clearTimeout(leaving);
    shown?.removeAttribute("aria-describedby");
    shown = null;
    tip.hidden = true;
  }
  async function show(link) {
    clearTimeout(leaving);
    if (shown === link) return;
    hide();
    shown = link;
    window.MathJax?.typesetClear?.([tip]);
    tip.textContent = link.dataset.definition;
    tip.hidden = false;
    link.setAttribute("aria-describedby", tip.id);
    place();
    if (tip.textContent.includes("\\(") && window.MathJax?.startup) {
      await MathJax.startup.promise;
      await MathJax.typesetPromise([tip]);
      if (shown === link) place();
    }
  }
  const later = () => {
    clearTimeout(leaving);
    leaving = setTimeout(hide, 200); // time enough to move onto the tip
  };

  for (const link of document.querySelectorAll("a[title]:has(> .std-term)")) {
    link.dataset.definition = link.title;
    link.removeAttribute("title"); // or the browser would show it as well
    let tapped = false;
    link.addEventListener("pointerdown", (event) => {
      tapped = event.pointerType === "touch" && shown !== link;
    });
    link.addEventListener("click", (event) => {
      if (tapped) event.preventDefault(); // a second tap goes to the glossary
      tapped = false;
      show(link);
    });
    link.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && show(link));
    link.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && later());
    link.addEventListener("focus", () => show(link));
    link.addEventListener("blur", hide);
  }
  tip.addEventListener("pointerenter", () => clearTimeout(leaving));
  tip.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && later());
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  document.addEventListener("pointerdown", ({ target }) => {
    if (shown && target !== tip && !tip.contains(target) && !shown.contains(target)) hide();
  });
}

/* A formula that is wider than the page gets smaller, to two thirds at most; then it scrolls.
   In a line of text it scrolls as it is. A figure that is a little too wide gets as wide as the page. */
function fit() {
  for (const box of document.querySelectorAll(".bd-article div.math")) {
    box.style.fontSize = "";
    const wide = [...box.querySelectorAll('mjx-container[display="true"]')].map(
      (formula) => formula.scrollWidth / formula.clientWidth);
    const most = Math.max(1, ...wide);
    if (most > 1.002) box.style.fontSize = `${Math.max(0.66, 0.99 / most)}em`;
  }
  const inline = [...document.querySelectorAll(".bd-article span.math > mjx-container")];
  for (const formula of inline) formula.classList.remove("wide");
  const room = (formula) => formula.closest("p, li, td, dd, div").clientWidth;
  const wide = inline.filter((formula) => formula.offsetWidth > room(formula) + 1);
  for (const formula of wide) formula.classList.add("wide");
  for (const figure of document.querySelectorAll(".bd-article figure")) {
    const drawn = figure.querySelector("img");
    if (!drawn) continue;
    drawn.style.maxWidth = "";
    const wide = figure.scrollWidth / figure.clientWidth;
    const most = innerWidth < 720 ? 1.003 : 1.15; // on a phone its type has 9 px already
    if (wide > 1 && wide < most) drawn.style.maxWidth = "100%";
  }
}

/* On a phone a table that is too wide, or that has many columns of broken lines, becomes a list:
   a block for each row, in it the heads of the columns. */
function list() {
  for (const table of document.querySelectorAll(".bd-article table")) {
    const rows = [...(table.tBodies[0]?.rows ?? [])], heads = table.tHead?.rows[0]?.cells ?? [];
    table.classList.remove("listed");
    if (innerWidth >= 600 || heads.length < 3) continue;
    const wide = table.offsetWidth > table.parentElement.clientWidth + 2;
    const tall = heads.length > 3 && table.tBodies[0].offsetHeight > 64 * rows.length;
    if (!wide && !tall) continue;
    table.classList.add("listed");
    if (table.querySelector(".column")) continue;
    for (const row of rows) {
      for (const [i, cell] of [...row.cells].entries()) {
        const name = document.createElement("span");
        name.className = "column";
        name.append(...(heads[i]?.cloneNode(true).childNodes ?? []));
        if (i) cell.prepend(name);
      }
    }
  }
}

/* A formula stays on the line of the bracket before it and of the comma or full stop after it.
   The space before the name of an exercise is not part of the link, or it would be underlined. */
function hold() {
  for (const link of document.querySelectorAll(".solution > .admonition-title > a")) {
    const name = link.firstChild;
    if (name?.nodeType !== Node.TEXT_NODE || !name.data.startsWith(" ")) continue;
    name.data = name.data.trimStart();
    link.before(" ");
  }
  for (const formula of document.querySelectorAll(".bd-article span.math")) {
    const [before, after] = [formula.previousSibling, formula.nextSibling].map(
      (node) => (node?.nodeType === Node.TEXT_NODE ? node : null));
    const opening = before?.data.match(/[([“]+$/)?.[0] ?? "";
    const closing = after?.data.match(/^(?:’s|[)\].,;:!?’”])+/)?.[0] ?? "";
    if (!opening && !closing) continue;
    if (opening) before.data = before.data.slice(0, -opening.length);
    if (closing) after.data = after.data.slice(closing.length);
    const held = document.createElement("span");
    held.className = "held";
    formula.replaceWith(held);
    held.append(opening, formula, closing);
  }
}

window.addEventListener("load", async () => {
  glossary();
  hold();
  await window.MathJax?.startup?.promise;
  const arrange = () => [fit(), list()];
  arrange();
  document.addEventListener("click", ({ target }) => { // what opens is narrower than it was
    if (target.closest(".dropdown, details")) setTimeout(arrange);
  });
  let width = innerWidth;
  window.addEventListener("resize", () => {
    if (innerWidth !== width) arrange();
    width = innerWidth;
  });
});
