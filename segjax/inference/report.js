"use strict";

// Tables sort by the column that is clicked; what has no value comes last either way.
for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  [...body.rows].forEach((row, place) => (row.place = place));
  const value = (row, column) => {
    const text = row.cells[column].dataset.v;
    return heads[column].dataset.kind === "text" || text === "" ? text : Number(text);
  };
  const sort = (column, ascending) => {
    const sign = ascending ? 1 : -1;
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a, column), value(b, column)];
      if (x === "" || y === "") return (x === "") - (y === "") || a.place - b.place;
      const order = typeof x === "string" ? x.localeCompare(y) : x - y;
      return sign * order || a.place - b.place;
    });
    body.append(...rows);
    heads.forEach((head, i) => {
      if (i === column) head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
  };
  heads.forEach((head, column) => {
    head.firstElementChild.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      sort(column, before ? before === "descending" : head.dataset.first === "ascending");
    });
  });
}

// One tooltip for all.
const tip = document.getElementById("tip");
const say = (event, text) => {
  tip.textContent = text;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = event.clientX + 16 + width > innerWidth ? event.clientX - width - 12 : event.clientX + 16;
  const top = event.clientY + 18 + height > innerHeight ? event.clientY - height - 12 : event.clientY + 18;
  tip.style.left = `${Math.max(left, 4)}px`;
  tip.style.top = `${Math.max(top, 4)}px`;
};
const hush = () => (tip.hidden = true);

// The confusion matrix.
const canvas = document.getElementById("matrix");
if (canvas) {
  const { names, colours, rows } = JSON.parse(document.getElementById("pairs").textContent);
  const count = names.length;
  const totals = rows.map((row) => row.reduce((sum, n, i) => sum + (i % 2 ? n : 0), 0));
  const context = canvas.getContext("2d");
  const drawn = document.createElement("canvas"); // the matrix without the cursor
  let cell, left, top, scale;

  const shorten = (pen, text, width) => {
    if (pen.measureText(text).width <= width) return text;
    while (text.length > 1 && pen.measureText(`${text}…`).width > width) text = text.slice(0, -1);
    return `${text}…`;
  };

  const draw = () => {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const font = (size) => `${size}px system-ui, "Segoe UI", Roboto, Arial, sans-serif`;
    const pen = drawn.getContext("2d");
    const room = canvas.parentElement.clientWidth;
    pen.font = font(12);
    const longest = Math.min(Math.max(...names.map((name) => pen.measureText(name).width)), 130);
    const named = (room - longest - 24) / count >= 13; // else every tenth class has its number
    left = named ? Math.ceil(longest) + 20 : 42;
    top = named ? Math.ceil(longest * 0.75) + 24 : 28;
    const right = named ? Math.ceil(longest * 0.7) : 4;
    cell = Math.floor((room - left - right) / count);
    cell = Math.min(Math.max(cell, named ? 13 : 4), 52);
    const [width, height] = [left + cell * count + right, top + cell * count + 2];
    scale = window.devicePixelRatio || 1;
    for (const one of [canvas, drawn]) {
      one.width = Math.round(width * scale);
      one.height = Math.round(height * scale);
    }
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    pen.scale(scale, scale);

    const gap = cell >= 10 ? 1 : 0;
    pen.fillStyle = colour("--card");
    pen.fillRect(left, top, cell * count, cell * count);
    rows.forEach((row, i) => {
      for (let at = 0; at < row.length; at += 2) {
        const [j, share] = [row[at], row[at + 1] / totals[i]];
        const [x, y] = [left + j * cell, top + i * cell];
        const strength = Math.sqrt(share);
        pen.fillStyle = `rgb(${colour(i === j ? "--right" : "--wrong")} / ${strength})`;
        pen.fillRect(x, y, cell - gap, cell - gap);
        if (cell >= 24 && share >= 0.005) {
          pen.font = font(cell >= 34 ? 12 : 11);
          pen.textAlign = "center";
          pen.textBaseline = "middle";
          pen.fillStyle = strength > 0.6 ? colour("--on-colour") : colour("--ink");
          pen.fillText(String(Math.round(share * 100)), x + (cell - gap) / 2, y + cell / 2 + 0.5);
        }
      }
    });
    pen.font = font(12);
    pen.textBaseline = "middle";
    for (let k = 0; k < count; k++) {
      pen.fillStyle = colours[k];
      pen.fillRect(left - 9, top + k * cell, 6, Math.max(cell - gap, 1));
      pen.fillRect(left + k * cell, top - 9, Math.max(cell - gap, 1), 6);
      pen.fillStyle = totals[k] ? colour("--ink") : colour("--faint");
      const text = named ? shorten(pen, names[k], longest) : k % 10 ? "" : String(k);
      pen.textAlign = "right";
      pen.fillText(text, left - 14, top + (k + 0.5) * cell);
      pen.save();
      pen.translate(left + (k + 0.5) * cell, top - 13);
      if (named) pen.rotate(-Math.PI / 4);
      else pen.textBaseline = "bottom";
      pen.textAlign = named ? "left" : "center";
      pen.fillText(text, 0, 0);
      pen.restore();
    }
    show();
  };

  const show = (row = -1, column = -1) => {
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.drawImage(drawn, 0, 0);
    if (row < 0) return;
    context.scale(scale, scale);
    const side = cell * count;
    context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--ink");
    context.strokeRect(left - 0.5, top + row * cell - 0.5, side, cell);
    context.strokeRect(left + column * cell - 0.5, top - 0.5, cell, side);
  };

  const point = (event) => {
    const box = canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - left) / cell);
    const row = Math.floor((event.clientY - box.top - top) / cell);
    if (Math.min(row, column) < 0 || Math.max(row, column) >= count) return leave();
    show(row, column);
    let pixels = 0;
    for (let at = 0; at < rows[row].length; at += 2) {
      if (rows[row][at] === column) pixels = rows[row][at + 1];
    }
    const share = totals[row] ? `${((100 * pixels) / totals[row]).toFixed(1)} %` : "never labelled";
    const many = pixels.toLocaleString("en");
    say(event, `truth ${names[row]} → predicted ${names[column]}\n${share} (${many} pixels)`);
  };
  const leave = () => {
    show();
    hush();
  };
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("pointerleave", leave);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let width = 0;
  new ResizeObserver(() => {
    if (canvas.parentElement.clientWidth === width) return;
    width = canvas.parentElement.clientWidth;
    draw();
  }).observe(canvas.parentElement);
  draw();
}

// Curves: the values at the step under the pointer.
for (const svg of document.querySelectorAll(".chart svg")) {
  const { from, to, left, right, series } = JSON.parse(svg.dataset.curves);
  const cursor = svg.querySelector(".cursor");
  const steps = [...new Set(series.flatMap(({ points }) => points.map(([step]) => step)))];
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const wanted = from + ((x - left) / (right - left)) * (to - from);
    const near = (a, b) => (Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a);
    const step = steps.reduce(near);
    const place = left + ((step - from) / (to - from || 1)) * (right - left);
    cursor.setAttribute("x1", place);
    cursor.setAttribute("x2", place);
    cursor.style.visibility = "visible";
    const lines = series.flatMap(({ name, points }) =>
      points.filter(([at]) => at === step).map(([, y]) => `${name} ${Number(y.toPrecision(5))}`),
    );
    say(event, [`step ${Math.round(step).toLocaleString("en")}`, ...lines].join("\n"));
  });
  svg.addEventListener("pointerleave", () => {
    cursor.style.visibility = "hidden";
    hush();
  });
}

// Panels grow when they are clicked.
for (const panels of document.querySelectorAll(".panels")) {
  const toggle = () => panels.classList.toggle("large");
  panels.addEventListener("click", toggle);
  panels.addEventListener("keydown", (event) => {
    if (event.key === "Enter") toggle();
  });
}
