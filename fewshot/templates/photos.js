
// Commands and paths: a button copies them.
for (const box of document.querySelectorAll(".copyable")) {
  const button = document.createElement("button");
  const line = box.dataset.copy ?? box.querySelector("code").textContent;
  button.type = "button";
  button.textContent = "Copy";
  button.setAttribute("aria-label", `Copy ${line}`);
  button.addEventListener("click", async () => {
    button.textContent = (await copied(line, box)) ? "Copied" : "Press Ctrl+C";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  box.append(button);
}

async function copied(line, box) {
  try {
    await navigator.clipboard.writeText(line);
    return true;
  } catch {
    box.querySelector("code").textContent = line;
    getSelection().selectAllChildren(box.querySelector("code"));
    return document.execCommand("copy");
  }
}
