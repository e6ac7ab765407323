"use strict";
(() => {
  const PART = 120;
  const MARKS = { abnormal: "▲", found: "▲", "false alarm": "✗", missed: "✗", unreadable: "?" };
  const byId = (id) => document.getElementById(id);
  const rows = JSON.parse(byId("rows").textContent);
  rows.forEach((row, number) => { row.number = number; row.lower = row.name.toLowerCase(); });
  const controls = ["class", "verdict", "defect", "folder", "search"].map(byId).filter((control) => control);
  const cards = byId("cards"), more = byId("more"), sort = byId("sort"), viewer = byId("viewer");
  const last = (row) => (row.score === null ? -Infinity : row.score);
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  const orders = {
    // The rows come with mistakes first.
    first: (a, b) => a.number - b.number,
    high: (a, b) => last(b) - last(a) || a.number - b.number,
    low: (a, b) => (a.score === null) - (b.score === null) || a.score - b.score || a.number - b.number,
    name: (a, b) => compare(a.name, b.name) || a.number - b.number,
  };
  let shown = [], drawn = 0, open = -1;

  const add = (parent, tag, text, kind) => {
    const element = document.createElement(tag);
    element.textContent = text;
    if (kind) element.className = kind;
    parent.append(element);
    return element;
  };

  const dataOf = (id) => {
    const element = byId(id);
    return element ? `data:image/webp;base64,${element.textContent}` : "";
  };

  const value = (id) => (byId(id) ? byId(id).value : "");

  const matches = (row) => {
    const verdict = value("verdict"), words = value("search").trim().toLowerCase();
    const agrees = !verdict || (verdict === "mistakes" ? row.mistake : [row.outcome, row.label].includes(verdict));
    return agrees
      && (!value("class") || row.class === value("class"))
      && (!value("defect") || row.defects.includes(value("defect")))
      && (!value("folder") || row.folder === value("folder"))
      && (!words || row.lower.includes(words));
  };

  const describe = (row) => [row.outcome, row.scoreText].filter((text) => text).join(" ");

  const makeCard = (row, place) => {
    const card = document.createElement("button");
    card.type = "button";
    card.className = "card";
    card.classList.toggle("abnormal", row.label === "abnormal");
    card.classList.toggle("mistake", row.mistake);
    card.dataset.place = place;
    const source = dataOf(`t${row.number}`);
    if (source) {
      const image = add(card, "img", "");
      image.alt = "";
      image.decoding = "async";
      image.src = source;
    } else {
      add(card, "span", "no image", "none");
    }
    add(card, "span", [MARKS[row.outcome], describe(row)].filter((text) => text).join(" "), "verdict");
    const name = add(card, "span", "", "name");
    // Lines end at folders where they can.
    row.name.split("/").forEach((part, index) => {
      if (index) name.append("/", document.createElement("wbr"));
      name.append(part);
    });
    return card;
  };

  const drawMore = () => {
    const part = document.createDocumentFragment();
    const end = Math.min(drawn + PART, shown.length);
    for (; drawn < end; drawn += 1) part.append(makeCard(shown[drawn], drawn));
    cards.append(part);
    more.hidden = drawn === shown.length;
  };

  const update = () => {
    shown = rows.filter(matches).sort(orders[sort.value]);
    drawn = 0;
    cards.replaceChildren();
    byId("status").textContent = shown.length === rows.length
      ? `${rows.length} image${rows.length === 1 ? "" : "s"}`
      : `${shown.length} of ${rows.length} images`;
    drawMore();
    const figures = [...document.querySelectorAll(".histogram")];
    const own = figures.find((figure) => figure.dataset.class === value("class")) || figures[0];
    figures.forEach((figure) => { figure.hidden = figure !== own; });
    document.querySelectorAll(".count").forEach((button) => {
      const chosen = button.dataset.verdict === value("verdict") && button.dataset.class === value("class");
      button.setAttribute("aria-pressed", String(chosen));
    });
  };

  const cardAt = (place) => {
    while (place >= drawn && drawn < shown.length) drawMore();
    return cards.children[place];
  };

  const showSmall = (row, picture, note) => {
    const small = dataOf(`t${row.number}`);
    picture.className = "small";
    picture.hidden = !small;
    if (small) picture.src = small;
    byId("note").textContent = note;
  };

  const showPicture = (row) => {
    // A new element, so that a slow or missing picture of another image cannot come in late.
    const picture = document.createElement("img");
    picture.id = "picture";
    picture.alt = `${row.name}: ${describe(row)}`;
    byId("note").textContent = "";
    const embedded = dataOf(`p${row.number}`);
    if (!embedded && !row.link) {
      showSmall(row, picture, row.error || "There is no larger picture.");
    } else {
      if (!embedded) {
        picture.onerror = () => {
          picture.onerror = null;
          showSmall(row, picture, `The larger picture is not here; it was ${decodeURIComponent(row.link)}, seen from this page.`);
        };
      }
      picture.src = embedded || row.link;
    }
    byId("frame").replaceChildren(picture);
  };

  const show = (place) => {
    open = place;
    const row = shown[place];
    byId("viewer-name").textContent = row.name;
    const truth = row.truth ? `, ground truth ${row.truth}` : "";
    byId("viewer-verdict").textContent = `${row.outcome}${row.label && row.label !== row.outcome ? `: called ${row.label}${truth}` : truth}`;
    byId("position").textContent = `${place + 1} of ${shown.length}`;
    byId("previous").disabled = place === 0;
    byId("next").disabled = place === shown.length - 1;
    const body = byId("regions").querySelector("tbody");
    body.replaceChildren();
    row.regions.forEach((region) => {
      const line = add(body, "tr", "");
      region.forEach((cell) => add(line, "td", String(cell)));
    });
    byId("regions").hidden = row.regions.length === 0;
    const facts = byId("facts");
    facts.replaceChildren();
    [
      ["score", row.scoreText], ["threshold", row.thresholdText], ["class", row.class], ["explanation", row.explanation],
      ["milliseconds", row.milliseconds], ["not read", row.error], ["file", row.path],
    ].forEach(([name, text]) => {
      if (text) {
        add(facts, "dt", name);
        add(facts, "dd", text);
      }
    });
    showPicture(row);
    if (!viewer.open) viewer.showModal();
  };

  const step = (by) => {
    if (open + by >= 0 && open + by < shown.length) show(open + by);
  };

  const columns = () => {
    const top = cards.firstElementChild.offsetTop;
    const second = [...cards.children].findIndex((card) => card.offsetTop > top);
    return second < 0 ? cards.children.length : second;
  };

  const choose = (button) => {
    ["class", "verdict", "defect", "folder", "search"].forEach((id) => { if (byId(id)) byId(id).value = button.dataset[id] || ""; });
    update();
  };

  [sort, ...controls].forEach((control) => {
    control.addEventListener(control.type === "search" ? "input" : "change", update);
  });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("reset").addEventListener("click", (event) => choose(event.currentTarget));
  document.querySelectorAll(".count").forEach((button) => button.addEventListener("click", () => choose(button)));
  more.addEventListener("click", () => {
    const place = drawn;
    cardAt(place).focus();
  });
  cards.addEventListener("click", (event) => {
    const card = event.target.closest(".card");
    if (card) show(Number(card.dataset.place));
  });
  cards.addEventListener("keydown", (event) => {
    const card = event.target.closest(".card");
    if (!card || event.altKey || event.ctrlKey || event.metaKey) return;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns() };
    const place = Number(card.dataset.place);
    const to = { Home: 0, End: shown.length - 1 }[event.key] ?? (place + (steps[event.key] ?? NaN));
    if (to >= 0 && to < shown.length) {
      event.preventDefault();
      cardAt(to).focus();
    }
  });
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("keydown", (event) => {
    if (event.target === byId("frame")) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  viewer.addEventListener("close", () => {
    const card = cardAt(open);
    if (card) card.focus();
  });
  new IntersectionObserver((entries, observer) => {
    if (entries.some((entry) => entry.isIntersecting) && !more.hidden) {
      drawMore();
      // It tells only of changes, and the button may still be in view.
      observer.unobserve(more);
      observer.observe(more);
    }
  }, { rootMargin: "800px" }).observe(more);
  update();
})();
