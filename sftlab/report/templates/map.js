"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const make = (name, parent, attributes = {}, space = "http://www.w3.org/1999/xhtml") => {
  const node = parent.appendChild(document.createElementNS(space, name));
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  return node;
};
const SVG = "http://www.w3.org/2000/svg", hidden = new Set();
const nearest = (svg, event) => {
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  let best = null, least = 16;
  for (const dot of svg.children) {
    const far = (dot.getAttribute("cx") - at.x) ** 2 + (dot.getAttribute("cy") - at.y) ** 2;
    if (far < least && dot.style.display !== "none") { best = dot; least = far; }
  }
  return best;
};
const show = number => {
  document.querySelectorAll("circle.on").forEach(dot => dot.classList.remove("on"));
  document.querySelectorAll(`circle[data-n="${number}"]`).forEach(dot => {
    dot.classList.add("on");
    dot.parentNode.append(dot);
  });
  const query = data.queries[number];
  document.getElementById("text").textContent = data.abilities[query.ability].name + "\n" + query.text;
};
const draw = method => {
  document.getElementById("panels").replaceChildren();
  document.querySelectorAll("#methods button").forEach(
    button => button.setAttribute("aria-pressed", button.textContent === method));
  for (const panel of data.panels) {
    const figure = make("figure", document.getElementById("panels"));
    const name = make("strong", figure);
    name.textContent = panel.label;
    const svg = make("svg", figure, {viewBox: "0 0 100 100", role: "img", "aria-label": panel.label}, SVG);
    make("figcaption", figure).textContent = panel.note + "; " + method + ": " + panel.maps[method].note;
    panel.maps[method].points.forEach(([x, y], n) => {
      const ability = data.queries[n].ability;
      const dot = make("circle", svg, {cx: x, cy: y, r: 0.9, "data-n": n}, SVG);
      dot.style.fill = data.abilities[ability].colour;
      if (hidden.has(ability)) dot.style.display = "none";
    });
    for (const kind of ["pointermove", "pointerdown"]) svg.addEventListener(kind, event => {
      const dot = nearest(svg, event);
      if (dot) show(dot.dataset.n);
    });
  }
};
data.methods.forEach(method => {
  const button = make("button", document.getElementById("methods"));
  button.textContent = method;
  button.addEventListener("click", () => draw(method));
});
data.abilities.forEach((ability, number) => {
  const button = make("button", document.getElementById("legend"), {"aria-pressed": true});
  make("i", button).style.background = ability.colour;
  button.append(ability.name);
  button.addEventListener("click", () => {
    hidden.has(number) ? hidden.delete(number) : hidden.add(number);
    button.setAttribute("aria-pressed", !hidden.has(number));
    draw(document.querySelector("#methods [aria-pressed=true]").textContent);
  });
});
draw(data.methods[0]);
