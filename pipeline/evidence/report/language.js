// The page works without this: it opens in English and the switch is plain CSS.
const choices = document.querySelectorAll('input[name="language"]');
const wanted = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
for (const choice of choices) {
  choice.checked = choice.id === wanted;
  choice.addEventListener("change", announce);
}
function announce() {
  for (const choice of choices) if (choice.checked) document.documentElement.lang = choice.value;
}
announce();
