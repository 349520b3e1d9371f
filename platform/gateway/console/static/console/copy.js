// Copies the text of the element that data-copy names. Plain http pages have no clipboard API, hence the
// second way: select and let the browser copy.
"use strict";
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const field = document.getElementById(button.dataset.copy);
  const text = field.value ?? field.textContent;
  let done = false;
  try {
    await navigator.clipboard.writeText(text);
    done = true;
  } catch {
    if (field.select) field.select();
    done = document.execCommand("copy");
  }
  const status = document.getElementById("copy-status");
  if (status) status.textContent = done ? "Copied." : "Select the key and copy it.";
});
