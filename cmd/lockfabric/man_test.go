//go:build unix

package main

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"
)

// The manual has every command, flag, variable and example of the help, and the exit codes,
// and is free of faults where there is something that finds them.
func TestManPage(t *testing.T) {
	t.Parallel()
	code, page, stderr := run(t, bare(t, "help", "--man"))
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	plain := strings.NewReplacer(`\&`, "", `\-`, "-", `\(aq`, "'", `\(ti`, "~", `\(ha`, "^", `\(ga`, "`", `\(dq`, `"`, `\e`, `\`).Replace(page)
	has := func(text string) {
		t.Helper()
		if !strings.Contains(plain, text+"\n") {
			t.Errorf("no line with %q", text)
		}
	}
	app := model()
	flags := app.Flags
	for _, n := range app.Leaves(true) {
		has(`.SS "` + n.Summary() + `"`)
		has(n.Help)
		flags = append(flags, n.Flags...)
		for _, line := range examplesOf(pathOf(n)) {
			has("    " + line)
		}
	}
	for _, f := range flags {
		if !f.Hidden {
			has("\n.TP\n" + f.String())
			for _, env := range f.Envs {
				has("($" + env + ").")
			}
		}
	}
	for code, meaning := range documented() {
		if !strings.Contains(plain, "\n"+code+" ") || !strings.Contains(plain, meaning) {
			t.Errorf("no exit code %s", code)
		}
	}
	for _, check := range [][]string{{"groff", "-k", "-man", "-Tutf8", "-ww", "-z"}, {"mandoc", "-T", "lint", "-W", "error"}} {
		path, err := exec.LookPath(check[0])
		if err != nil {
			continue // the text was checked
		}
		cmd := exec.Command(path, check[1:]...)
		cmd.Stdin = strings.NewReader(page)
		if out, err := cmd.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
			t.Errorf("%v: %v\n%s", check, err, out)
		}
	}
}
