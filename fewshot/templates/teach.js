
// The page of `fewshot teach`. The server has the state; what an action answers is drawn again.
{
const at = (id) => document.getElementById(id);
const LETTERS = "bcdefghijklmopqrtwyz"; // those that do nothing else
const ABOUT = {
  alike: "By what they look most like, the surest first. Select those that are right, then press their class.",
  doubtful: "The other labels say that these are something else. Select them and press their class, or leave them.",
  duplicates: "The same photo saved twice, or a burst. They are kept together when the accuracy is found.",
  outsiders: "Photos that are like nothing you have labeled: a new class, or none of these.",
  labeled: "The newest first. Select photos and press another class to correct their label.",
};
let state = null;
let view = "next";
let skipped = new Set();
let groups = [];
let selected = new Set();
let asked = 0; // the position that a judgment is being waited for

function make(tag, values, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(values || {})) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const many = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
const inHundred = (share) => {
  const n = Math.round(100 * share);
  if (n === 100 && share < 1) return "over 99 in 100";
  return n === 0 && share > 0 ? "under 1 in 100" : `${n} in 100`;
};
const photoAt = (id, side) => `photo?id=${id}&side=${side}`;
const keyOf = (i) => (i < 9 ? String(i + 1) : LETTERS[i - 9] || "");

async function ask(place, body) {
  const options = {};
  if (body !== undefined) {
    options.method = "POST";
    options.body = body instanceof Blob ? body : JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(place, options);
  } catch {
    throw new Error("The program has ended. Start fewshot teach again: every label is kept.");
  }
  const value = await answer.json();
  if (!answer.ok) {
    const error = new Error(value.error);
    error.stale = answer.status === 409 && place !== "try" && place !== "save";
    throw error;
  }
  return value;
}

function complain(error) {
  at("alert").textContent = error ? error.message : "";
  at("alert").hidden = !error;
}

function say(text) {
  at("said").textContent = text;
}

// Everything that changes labels goes through here. Until the answer is there keys do nothing, for
// they would label a photo that is about to be replaced by the next one.
let busy = false;
async function act(place, body, said) {
  if (busy) return;
  busy = true;
  try {
    const found = await ask(place, { ...body, seen: state.position });
    complain(null);
    await take(found);
    say(said(found));
  } catch (error) {
    complain(error);
    if (error.stale) await refresh();
  }
  busy = false;
}

async function refresh() {
  try {
    await take(await ask("state"));
  } catch (error) {
    complain(error);
  }
}

async function take(found) {
  state = found;
  await draw();
  judge();
}

function current() {
  const free = state.proposed.filter((photo) => !skipped.has(photo.id));
  if (!free.length && state.proposed.length) {
    skipped = new Set();
    return state.proposed[0];
  }
  return free[0];
}

function targets() {
  if (view === "next") return current() ? [current().id] : [];
  if (selected.size) return [...selected];
  const focused = document.activeElement;
  return focused && focused.classList.contains("pick") ? [Number(focused.dataset.id)] : [];
}

function label(name) {
  const ids = targets();
  if (!ids.length) {
    say(view === "next" ? "No photo is left." : "Select photos first.");
    return;
  }
  const what = ids.length === 1 ? "1 photo" : `${ids.length} photos`;
  const drawn = view === "next" && ids[0] === state.drawn;
  act("label", { photos: ids, label: name, drawn }, () =>
    name ? `${what}: ${name}` : name === "" ? `${what}: none of these` : `${what}: no label`);
}

function undo() {
  act("undo", {}, (found) => {
    for (const id of found.changed) skipped.delete(id);
    return found.changed.length ? `Undone: ${many(found.changed.length, "photo")}` : "Nothing to undo.";
  });
}

function skip() {
  const photo = current();
  if (view !== "next" || !photo) return;
  skipped.add(photo.id);
  say(`Skipped ${photo.path}`);
  draw();
}

async function draw() {
  const labeled = state.classes.reduce((sum, one) => sum + one.count, 0);
  const aside = state.aside ? `, ${state.aside.toLocaleString("en")} set aside` : "";
  at("count").textContent = `${labeled.toLocaleString("en")} of ${many(state.total, "photo")} labeled${aside}`;
  at("undo").disabled = !state.undo;
  at("names").replaceChildren(...state.classes.map((one) => make("option", { value: one.name })));
  at("next").hidden = view !== "next";
  at("grid").hidden = view === "next";
  at("skip").hidden = view !== "next";
  for (const button of document.querySelectorAll("#views button")) {
    if (button.dataset.view === view) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
  if (view === "next") drawNext();
  else await drawGroups();
  drawClasses();
}

function drawNext() {
  const photo = current();
  at("current").hidden = !photo;
  if (!photo) {
    say(state.aside + state.classes.reduce((sum, one) => sum + one.count, 0) === state.total
      ? "Every photo has a label. Look at the doubtful ones, and save." : "");
    return;
  }
  const image = at("photo");
  if (image.dataset.id !== String(photo.id)) {
    image.dataset.id = photo.id;
    image.src = photoAt(photo.id, "large");
    image.alt = photo.path;
  }
  const [best] = photo.guesses;
  const guess = best ? ["Looks like ", make("b", {}, best[0]), `, ${inHundred(best[1])}`] : [];
  const tag = photo.id === state.drawn ? [make("span", { className: "tag", title: "Proposed at random: such photos say how good the classifier is" }, "random draw")] : [];
  at("caption").replaceChildren(make("small", {}, photo.path), ...guess, ...tag);
  if (!state.classes.length) say("What is it? Name its class.");
  for (const after of state.proposed.slice(1, 4)) new Image().src = photoAt(after.id, "large");
}

function drawClasses() {
  const photo = view === "next" ? current() : undefined;
  const guesses = new Map(photo ? photo.guesses : []);
  const first = photo && photo.guesses.length ? photo.guesses[0][0] : null;
  at("classes").replaceChildren(...state.classes.map((one, i) => {
    const share = guesses.get(one.name) || 0;
    const fill = make("span", { className: "fill" });
    fill.style.width = `${100 * share}%`;
    const key = keyOf(i);
    const button = make("button", { type: "button", className: one.name === first ? "first" : "" },
      ...(key ? [make("kbd", {}, key)] : []), make("span", { className: "name" }, one.name),
      make("span", { className: "n" }, String(one.count)), fill);
    button.title = one.name;
    const likely = share >= 0.005 ? `, likely ${inHundred(share)}` : "";
    button.setAttribute("aria-label", `${one.name}, ${many(one.count, "photo")}${key ? `, key ${key}` : ""}${likely}`);
    button.addEventListener("click", () => label(one.name));
    return make("li", {}, button);
  }));
}

async function drawGroups() {
  const asking = view;
  const found = await ask(`view?name=${asking}`);
  if (asking !== view) return;
  groups = found.groups;
  const known = new Set(groups.flatMap((group) => group.photos.map((photo) => photo.id)));
  selected = new Set([...selected].filter((id) => known.has(id)));
  at("about").textContent = ABOUT[view];
  const focused = document.activeElement && document.activeElement.dataset.id;
  at("groups").replaceChildren(...groups.map(drawGroup));
  if (!groups.length) at("groups").append(make("p", {}, "None."));
  if (focused !== undefined) document.querySelector(`.pick[data-id="${focused}"]`)?.focus();
}

function drawGroup(group, number) {
  const ids = group.photos.map((photo) => photo.id);
  const more = group.total > ids.length ? `${ids.length} of ${many(group.total, "photo")}` : many(group.total, "photo");
  const all = make("button", { type: "button" }, "Select all");
  all.addEventListener("click", () => toggleAll(ids));
  const buttons = [all];
  if (group.label) {
    const accept = make("button", { type: "button" }, `Label the selected “${group.label}”`);
    accept.addEventListener("click", () => label(group.label));
    buttons.push(accept);
  }
  if (view === "labeled") {
    const back = make("button", { type: "button" }, "Take the label back");
    back.addEventListener("click", () => label(null));
    buttons.push(back);
  }
  const head = make("header", {}, make("h2", { id: `group-${number}` }, group.title), make("p", {}, more), ...buttons);
  const photos = make("div", { className: "photos", role: "group", "aria-labelledby": `group-${number}` }, ...group.photos.map(drawPick));
  return make("section", { className: "group" }, head, photos);
}

function drawPick(photo) {
  const note = photo.note || photo.label || "";
  const image = make("img", { alt: "", loading: "lazy", src: photoAt(photo.id, "small") });
  const pick = make("button", { type: "button", className: "pick" }, image, photo.path, make("small", {}, note));
  pick.dataset.id = photo.id;
  pick.setAttribute("aria-pressed", String(selected.has(photo.id)));
  pick.setAttribute("aria-label", `${photo.path}${note ? `, ${note}` : ""}`);
  pick.addEventListener("click", () => toggle(photo.id));
  return pick;
}

function toggle(id) {
  if (!selected.delete(id)) selected.add(id);
  showSelected();
}

function toggleAll(ids) {
  const every = ids.every((id) => selected.has(id));
  for (const id of ids) every ? selected.delete(id) : selected.add(id);
  showSelected();
}

function showSelected() {
  for (const pick of document.querySelectorAll(".pick")) {
    pick.setAttribute("aria-pressed", String(selected.has(Number(pick.dataset.id))));
  }
  say(`${many(selected.size, "photo")} selected`);
}

function show(name) {
  view = name;
  selected = new Set();
  complain(null);
  say("");
  draw().catch(complain);
}

// The accuracy follows a moment later: it takes some fits more.
async function judge() {
  if (asked >= state.position && asked) return;
  asked = state.position;
  try {
    const found = await ask(`progress?position=${asked}`);
    if (found.position < state.position && asked === state.position) asked = 0;
    drawProgress(found);
  } catch (error) {
    asked = 0;
    complain(error);
  }
}

function drawProgress(found) {
  const minimum = Number(document.body.dataset.minimum);
  const big = at("accuracy");
  if (found.position < 0 || !found.judged) {
    big.textContent = "Nobody can say yet how good it is";
    at("interval").textContent = `Every third photo is drawn at random. ${minimum} of them, of classes with two photos or more, give a first answer.`;
  } else if (!found.enough) {
    big.textContent = "Too few to say how good it is";
    at("interval").textContent = `${found.judged} of ${minimum} photos of the random draw that a first answer takes.`;
  } else {
    big.replaceChildren("About ", make("strong", {}, inHundred(found.share)), " right");
    const names = found.zero_shot === null ? "" : ` From the class names alone: ${inHundred(found.zero_shot)}.`;
    at("interval").textContent = `Very likely between ${Math.round(100 * found.low)} and ${Math.round(100 * found.high)} in 100. ` +
      `${many(found.judged, "photo")} drawn at random ${found.judged === 1 ? "was" : "were"} classified by what the other labels teach; ${found.right} right.${names}`;
  }
  at("doubtful").textContent = found.doubtful ? String(found.doubtful) : "";
  at("doubtful").setAttribute("aria-label", found.doubtful ? `, ${found.doubtful}` : "");
  drawMetrics(found.enough ? found.classes : []);
  at("curve").hidden = !found.drawing;
  at("drawing").innerHTML = found.drawing || ""; // drawn by the server, of numbers alone
  at("drawing").querySelectorAll("svg.chart").forEach(follow);
}

function drawMetrics(classes) {
  at("each").hidden = !classes.length;
  const cell = (share) => make("td", { className: "number" }, share === null ? "–" : (100 * share).toFixed(0));
  at("metrics").replaceChildren(...classes.map((one) => make("tr", {},
    make("th", { scope: "row" }, one.name), make("td", { className: "number" }, String(one.judged)),
    cell(one.recall), cell(one.precision), cell(one.f1))));
}

async function tryPhoto(file) {
  const box = at("tried");
  complain(null);
  box.replaceChildren("Looking…");
  try {
    const found = await ask("try", file);
    const image = make("img", { alt: `The photo that was tried: ${file.name}` });
    image.src = URL.createObjectURL(file);
    image.addEventListener("load", () => URL.revokeObjectURL(image.src));
    const list = make("ul", { "aria-label": "Most probable classes" }, ...found.guesses.map(([name, p]) =>
      make("li", {}, make("span", {}, name), make("span", {}, `${(100 * p).toFixed(1)} %`), make("progress", { max: 1, value: p, "aria-label": name }))));
    const near = make("div", { className: "near-ones" }, ...found.nearest.map((photo) =>
      make("div", {}, make("img", { alt: photo.path, src: photoAt(photo.id, "small") }), make("b", {}, photo.label), make("br"), photo.note)));
    box.replaceChildren(image, list, make("p", {}, "The labeled photos most like it:"), near);
  } catch (error) {
    box.replaceChildren();
    complain(error);
  }
}

async function save() {
  const button = at("save");
  button.disabled = true;
  at("saved").textContent = "Saving…";
  try {
    const found = await ask("save", {});
    complain(null);
    const lines = [make("p", {}, found.summary), make("p", {}, "Labels: ", make("code", {}, found.table))];
    if (found.adapter) {
      lines.push(make("p", {}, "Classifier: ", make("code", {}, found.adapter)));
      lines.push(make("p", {}, "Use it: ", make("code", {}, `fewshot predict ${found.adapter} PHOTOS`)));
    }
    lines.push(make("p", {}, "Try all methods: ", make("code", {}, `fewshot auto ${found.table}`)));
    at("saved").replaceChildren(...lines);
  } catch (error) {
    at("saved").replaceChildren();
    complain(error);
  }
  button.disabled = false;
}

function nameOne() {
  if (!targets().length) {
    say("Select photos first.");
    return;
  }
  const ids = targets();
  const dialog = at("naming");
  at("name").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  dialog.addEventListener("close", () => {
    const name = at("name").value.trim();
    if (view !== "next" && !selected.size) selected = new Set(ids);
    if (dialog.returnValue === "ok" && name) label(name);
  }, { once: true });
}

function moveFocus(step) {
  const picks = [...document.querySelectorAll(".pick")];
  if (!picks.length) return;
  const here = picks.indexOf(document.activeElement);
  picks[(here + step + picks.length) % picks.length].focus();
}

function selectGroup() {
  const focused = document.activeElement;
  const group = focused && focused.closest(".group");
  const index = group ? [...at("groups").children].indexOf(group) : 0;
  if (groups[index]) toggleAll(groups[index].photos.map((photo) => photo.id));
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, dialog");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !state) return;
  const key = event.key;
  const index = state.classes.findIndex((_, i) => keyOf(i) === key);
  const onButton = event.target.closest("button, label, .point");
  let did = true;
  if (index >= 0) label(state.classes[index].name);
  else if (key === "0") label("");
  else if (key === "n") nameOne();
  else if (key === "u") undo();
  else if (key === "s") skip();
  else if (key === "?") at("keyboard").showModal();
  else if (key === "a" && view !== "next") selectGroup();
  else if (key === "Escape") { selected = new Set(); showSelected(); }
  else if (key === "ArrowRight" && !event.target.closest(".point")) view === "next" ? skip() : moveFocus(1);
  else if (key === "ArrowLeft" && view !== "next") moveFocus(-1);
  else if (key === "Enter" && !onButton && view === "next" && current()?.guesses.length) label(current().guesses[0][0]);
  else did = false;
  if (did) event.preventDefault();
});

at("new").addEventListener("click", nameOne);
at("aside").addEventListener("click", () => label(""));
at("skip").addEventListener("click", skip);
at("undo").addEventListener("click", undo);
at("help").addEventListener("click", () => at("keyboard").showModal());
at("save").addEventListener("click", save);
at("file").addEventListener("change", () => {
  if (at("file").files[0]) tryPhoto(at("file").files[0]);
  at("file").value = "";
});
for (const button of document.querySelectorAll("#views button")) {
  button.addEventListener("click", () => show(button.dataset.view));
}

// A photo may be dropped anywhere.
let over = 0;
document.addEventListener("dragenter", () => { over += 1; at("drop").hidden = false; });
document.addEventListener("dragleave", () => { over -= 1; at("drop").hidden = over > 0 ? false : true; });
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  over = 0;
  at("drop").hidden = true;
  const [file] = event.dataTransfer.files;
  if (file) tryPhoto(file);
});

window.addEventListener("focus", () => state && refresh()); // another window may have labeled
refresh();
}
