// The button is hidden where nothing can be copied; the command can still be selected.
const button = document.querySelector("button");
const command = document.querySelector(".command code");
if (navigator.clipboard) button.hidden = false;
button.addEventListener("click", async () => {
  getSelection().selectAllChildren(command);
  try {
    await navigator.clipboard.writeText(command.textContent);
    button.textContent = "copied";
  } catch {
    button.textContent = "selected";
  }
});
