(() => {
  "use strict";
  const root = document.documentElement;
  const tags = { en: "en", zh: "zh-CN" };

  // Language: the address, then what was chosen before, then the browser's.
  const stored = () => { try { return localStorage.getItem("quintet-lang"); } catch { return null; } };
  const fromHash = () => { const h = location.hash.slice(1); return h in tags ? h : null; };
  const choose = (lang, keep) => {
    root.lang = tags[lang];
    for (const b of document.querySelectorAll("[data-set]")) b.setAttribute("aria-pressed", String(b.dataset.set === lang));
    if (keep) {
      try { localStorage.setItem("quintet-lang", lang); } catch { /* a page from disk may have no storage */ }
      history.replaceState(null, "", "#" + lang);
    }
  };
  const known = stored();
  choose(fromHash() || (known in tags ? known : null) || (navigator.language.startsWith("zh") ? "zh" : "en"), false);
  for (const b of document.querySelectorAll("[data-set]")) b.addEventListener("click", () => choose(b.dataset.set, true));
  addEventListener("hashchange", () => { const lang = fromHash(); if (lang) choose(lang, false); });

  // Sorting: a click on a head sorts by it, a second turns the order round; rows without a value stay last.
  const key = (row, i) => {
    const cell = row.cells[i];
    if (!cell || cell.colSpan > 1) return null;
    if (cell.dataset.sort !== undefined) return Number(cell.dataset.sort);
    return cell.tagName === "TH" || cell.classList.contains("left") ? cell.textContent.trim() : null;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, i) => {
      if (!head.hasAttribute("aria-sort")) return;
      head.tabIndex = 0;
      const sort = () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((h) => h.hasAttribute("aria-sort") && h.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows].map((row) => [key(row, i), row]);
        rows.sort(([a], [b]) => {
          if (a === null || b === null) return (a === null) - (b === null);
          const order = typeof a === "number" ? a - b : String(a).localeCompare(String(b));
          return down ? -order : order;
        });
        table.tBodies[0].append(...rows.map(([, row]) => row));
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); sort(); } });
    });
  }

  // More about a value: its template, shown beside it.
  const more = document.getElementById("more");
  const show = (cell) => {
    more.replaceChildren(cell.querySelector("template").content.cloneNode(true));
    more.hidden = false;
    const at = cell.getBoundingClientRect(), box = more.getBoundingClientRect();
    const below = at.bottom + 6 + box.height < innerHeight;
    more.style.left = Math.max(8, Math.min(at.right - box.width, innerWidth - box.width - 8)) + scrollX + "px";
    more.style.top = (below ? at.bottom + 6 : at.top - box.height - 6) + scrollY + "px";
  };
  for (const cell of document.querySelectorAll(".has-more")) {
    cell.addEventListener("mouseenter", () => show(cell));
    cell.addEventListener("focus", () => show(cell));
    cell.addEventListener("mouseleave", () => { more.hidden = true; });
    cell.addEventListener("blur", () => { more.hidden = true; });
  }
  addEventListener("keydown", (e) => { if (e.key === "Escape") more.hidden = true; });
  addEventListener("beforeprint", () => { for (const d of document.querySelectorAll("details")) d.open = true; });
})();
