"use strict";
// The list of runs: sorted by the head that is clicked, narrowed by words and by choices. Without a script all of it is there.
(() => {
  const list = document.getElementById("list");
  const search = document.getElementById("search");
  const count = document.getElementById("count");
  const commands = document.getElementById("commands");
  const heads = [...list.tHead.rows[0].cells];
  const runs = [...list.tBodies].map((body) => ({
    body,
    texts: [...body.rows[0].cells].map((cell) => cell.textContent.trim()),
    all: `${body.rows[0].textContent} ${body.querySelector("code").textContent}`.toLowerCase(),
  }));
  const choices = new Map();

  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const run of runs) {
      const chosen = [...choices].every(([column, select]) => !select.value || run.texts[column] === select.value.slice(1));
      const fits = chosen && words.every((word) => run.all.includes(word));
      run.body.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown.toLocaleString("en")} of ${runs.length.toLocaleString("en")} runs`;
  };

  const numberOf = (text) => (/^[-+]?[\d,]+(\.\d+)?(e[-+]?\d+)?$/.test(text) ? Number(text.replaceAll(",", "")) : NaN);
  // Numbers before texts, and what is not there last, whichever way the column is sorted.
  const compare = (one, other, sign) => {
    const lacks = (text) => text === "" || text === "-";
    if (lacks(one) || lacks(other)) return lacks(one) - lacks(other);
    const [a, b] = [numberOf(one), numberOf(other)];
    if (!Number.isNaN(a) && !Number.isNaN(b)) return sign * (a - b);
    if (Number.isNaN(a) !== Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return sign * one.localeCompare(other, "en", { numeric: true });
  };
  const sort = (column) => {
    const descending = heads[column].getAttribute("aria-sort") === "ascending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
    const sorted = [...runs].sort((one, other) => compare(one.texts[column], other.texts[column], descending ? -1 : 1));
    list.append(...sorted.map((run) => run.body));
  };

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.dataset.name = head.textContent;
    button.addEventListener("click", () => sort(column));
    head.replaceChildren(button);
    const values = [...new Set(runs.map((run) => run.texts[column]))];
    if (!("choice" in head.dataset) || values.length < 2 || values.length > 40) return;
    values.sort((one, other) => compare(one, other, 1));
    const label = document.createElement("label");
    const select = document.createElement("select");
    // A value has a mark before it, so that an empty cell can be chosen, too.
    select.append(new Option("all", ""), ...values.map((value) => new Option(value || "(none)", `=${value}`)));
    select.addEventListener("change", show);
    label.append(`${head.textContent} `, select);
    document.getElementById("choices").append(label);
    choices.set(column, select);
  });
  search.addEventListener("input", show);
  commands.addEventListener("change", () => list.classList.toggle("open", commands.checked));
  // A link to a run that is not shown shows all again.
  const reveal = () => {
    const target = list.querySelector("tbody:target");
    if (!target || !target.hidden) return;
    search.value = "";
    choices.forEach((select) => { select.value = ""; });
    show();
    target.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  list.classList.add("live");
  document.getElementById("controls").hidden = false;
  show();
})();
