package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"exitgate/integration/rig/rigtest"
)

// TestCompletion: each shell's completion script completes a command, a flag and its own words, in that very shell.
func TestCompletion(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Symlink(binary, filepath.Join(dir, "exitgate")); err != nil {
		t.Fatal(err)
	}
	for shell, complete := range map[string]string{
		// Bash: what `complete -F` registered is called as readline would; the stub is of the package bash-completion.
		"bash": `source <(exitgate completion bash)
_get_comp_words_by_ref() { words=("${COMP_WORDS[@]}"); cword=$COMP_CWORD; cur="${COMP_WORDS[COMP_CWORD]}"; prev="${COMP_WORDS[COMP_CWORD-1]}"; }
__ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9; COMPREPLY=(); __start_exitgate; printf '%s\n' "${COMPREPLY[@]}"; }
__ask exitgate expl; __ask exitgate watch --den; __ask exitgate completion zs`,
		// Zsh: compdef and compadd stand in for the editor's; what is offered is what _describe gets.
		"zsh": `autoload -Uz compinit && compinit -D -u 2>/dev/null
source <(exitgate completion zsh)
_describe() { print -rl -- "${(@P)4:-}" "${(@)completions}"; return 0 }
__ask() { words=("$@"); CURRENT=$#; _exitgate; }
__ask exitgate expl; __ask exitgate watch --den; __ask exitgate completion zs`,
		"fish": `exitgate completion fish | source
complete -C "exitgate expl"; complete -C "exitgate watch --den"; complete -C "exitgate completion zs"`,
	} {
		t.Run(shell, func(t *testing.T) {
			cmd := exec.Command(rigtest.Program(t, shell, shell), "-c", complete)
			cmd.Env = []string{"PATH=" + dir + ":" + os.Getenv("PATH"), "HOME=" + dir, "TERM=dumb", "EXITGATE_CONTROL=" + dir + "/none.sock"}
			out, err := cmd.CombinedOutput()
			for _, want := range []string{"explain", "--denied", "zsh"} {
				if !strings.Contains(string(out), want) {
					t.Errorf("%s does not complete to %q (%v):\n%s", shell, want, err, out)
				}
			}
			if strings.Contains(string(out), "attach") {
				t.Errorf("%s offers what does not begin so:\n%s", shell, out)
			}
		})
	}
}
