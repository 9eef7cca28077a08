"use strict";

// Charts: the values of every curve at the step nearest to the pointer.
for (const chart of document.querySelectorAll(".chart")) {
  const curves = JSON.parse(chart.querySelector("script").textContent);
  const svg = chart.querySelector("svg");
  const cursor = chart.querySelector(".cursor");
  const reading = chart.querySelector(".reading");
  const xs = [...new Set(curves.flatMap(([, points]) => points.map((p) => p[2])))];
  const nearest = (values, x, of) =>
    values.reduce((a, b) => (Math.abs(of(b) - x) < Math.abs(of(a) - x) ? b : a));

  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const x = nearest(xs, at, (v) => v);
    const found = curves.map(([run, points]) => [run, nearest(points, x, (p) => p[2])]);
    const close = found.filter(([, p]) => Math.abs(p[2] - x) < 4);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.removeAttribute("hidden");
    reading.replaceChildren(`step ${close[0][1][0]}`);
    for (const [run, point] of close) {
      const line = document.createElement("span");
      line.style.color = `var(--c${run % 10})`;
      line.textContent = `\n${Number(point[1].toPrecision(5))}`;
      reading.append(line);
    }
    reading.hidden = false;
  };
  const hide = () => {
    cursor.setAttribute("hidden", "");
    reading.hidden = true;
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}

// Embeddings: points on a canvas; the nearest one shows its image.
const COLOURS = 10;
const REACH = 14; // pixels between the pointer and a point
const MARGIN = 14;

for (const figure of document.querySelectorAll(".embedding")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const sheet = figure.querySelector(".sheet");
  const canvas = figure.querySelector(".plane > canvas");
  const tip = figure.querySelector(".tip");
  const thumbnail = tip.querySelector("canvas");
  const words = tip.querySelector("span");
  const classes = [...new Set(data.labels)].filter((c) => c >= 0).sort((a, b) => a - b);
  const place = new Map(classes.map((c, i) => [c, i]));
  const shown = new Set(data.labels);
  let map = Object.keys(data.maps)[0];
  let marked = -1;

  const nameOf = (label) => (data.names && data.names[label] !== undefined ? data.names[label] : `class ${label}`);
  const colourOf = (label, style) => {
    if (label < 0) return style.getPropertyValue("--c0");
    const i = place.get(label);
    if (classes.length <= COLOURS) return style.getPropertyValue(`--c${i}`);
    // Golden angle: classes beside each other differ most.
    return `hsl(${(i * 137.5) % 360} 60% ${i % 2 ? 45 : 60}%)`;
  };
  const pixel = (i) => {
    const side = canvas.clientWidth - 2 * MARGIN;
    const xy = data.maps[map];
    return [MARGIN + (xy[2 * i] / data.side) * side, MARGIN + (1 - xy[2 * i + 1] / data.side) * side];
  };

  const draw = () => {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = canvas.clientHeight * ratio;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const style = getComputedStyle(document.documentElement);
    const radius = data.labels.length > 2000 ? 2 : 3;
    context.globalAlpha = 0.8;
    data.labels.forEach((label, i) => {
      if (!shown.has(label)) return;
      const [x, y] = pixel(i);
      context.fillStyle = colourOf(label, style);
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.fill();
    });
    if (marked < 0) return;
    const [x, y] = pixel(marked);
    context.globalAlpha = 1;
    context.strokeStyle = style.getPropertyValue("--ink");
    context.lineWidth = 1.5;
    context.beginPath();
    context.arc(x, y, radius + 3, 0, 2 * Math.PI);
    context.stroke();
  };

  const nearest = (x, y) => {
    let best = -1;
    let least = REACH ** 2;
    data.labels.forEach((label, i) => {
      if (!shown.has(label)) return;
      const [px, py] = pixel(i);
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) [best, least] = [i, distance];
    });
    return best;
  };

  const show = (event) => {
    const box = canvas.getBoundingClientRect();
    const found = nearest(event.clientX - box.left, event.clientY - box.top);
    if (found === marked) return;
    marked = found;
    draw();
    tip.hidden = found < 0;
    if (found < 0) return;
    const side = data.thumbnail;
    thumbnail.width = thumbnail.height = 3 * side;
    const context = thumbnail.getContext("2d");
    context.imageSmoothingEnabled = false;
    const [row, column] = [Math.floor(found / data.columns), found % data.columns];
    context.drawImage(sheet, column * side, row * side, side, side, 0, 0, 3 * side, 3 * side);
    const label = data.labels[found];
    words.textContent = `${label < 0 ? "" : `${nameOf(label)} · `}image ${data.indices[found]}`;
    tip.dataset.point = found;
    const [x, y] = pixel(found);
    tip.style.left = `${x + 12 + tip.offsetWidth > box.width ? x - 12 - tip.offsetWidth : x + 12}px`;
    tip.style.top = `${Math.min(Math.max(0, y - 40), box.height - tip.offsetHeight)}px`;
  };
  const hide = () => {
    marked = -1;
    tip.hidden = true;
    draw();
  };
  canvas.addEventListener("pointermove", show);
  canvas.addEventListener("pointerdown", show);
  canvas.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());

  const choices = figure.querySelector(".choices");
  for (const name of Object.keys(data.maps)) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.setAttribute("aria-pressed", name === map);
    button.addEventListener("click", () => {
      map = name;
      for (const one of choices.children) one.setAttribute("aria-pressed", one === button);
      hide();
    });
    choices.append(button);
  }

  // The legend: a class that is pressed alone is shown alone; once more, and all are back.
  const legend = figure.querySelector(".legend");
  const buttons = classes.map((label) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(document.createElement("i"), nameOf(label));
    button.addEventListener("click", () => {
      const alone = shown.size === 1 && shown.has(label);
      shown.clear();
      for (const one of alone ? data.labels : [label]) shown.add(one);
      hide();
      colour();
    });
    const item = document.createElement("li");
    item.append(button);
    legend.append(item);
    return button;
  });
  const colour = () => {
    const style = getComputedStyle(document.documentElement);
    buttons.forEach((button, i) => {
      button.firstChild.style.background = colourOf(classes[i], style);
      button.setAttribute("aria-pressed", shown.has(classes[i]));
    });
  };
  const refresh = () => {
    colour();
    draw();
  };
  refresh();
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
}

// Pictures of several epochs: the slider chooses.
for (const series of document.querySelectorAll(".series")) {
  const slider = series.querySelector("input");
  const shots = series.querySelectorAll("[data-epoch]");
  if (!slider) continue;
  slider.addEventListener("input", () => {
    shots.forEach((shot, i) => (shot.hidden = i !== Number(slider.value)));
    series.querySelector("output").textContent = shots[slider.value].dataset.epoch;
  });
}

// Pictures in full size.
const dialog = document.querySelector("dialog");
for (const button of document.querySelectorAll(".picture .zoom")) {
  button.addEventListener("click", () => {
    dialog.firstElementChild.replaceChildren(button.querySelector("img").cloneNode());
    dialog.showModal();
  });
}
dialog.addEventListener("click", () => dialog.close());

// The leaderboard: a heading sorts by its column; what has no number stands last.
const board = document.querySelector(".board");
for (const heading of board ? board.querySelectorAll("thead .number") : []) {
  heading.dataset.sorts = "";
  heading.tabIndex = 0;
  const sort = () => {
    const down = heading.getAttribute("aria-sort") !== "descending";
    for (const one of board.querySelectorAll("[aria-sort]")) one.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = board.tBodies[0];
    const value = (row) => {
      const text = row.cells[heading.cellIndex].dataset.value;
      return text === "" || Number.isNaN(Number(text)) ? null : Number(text);
    };
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return down ? y - x : x - y;
    };
    body.append(...[...body.rows].sort(order));
  };
  heading.addEventListener("click", sort);
  heading.addEventListener("keydown", (event) => event.key === "Enter" && sort());
}
