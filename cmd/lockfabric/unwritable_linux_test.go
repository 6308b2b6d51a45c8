package main

import (
	"os"
	"strings"
	"testing"
)

// A result that can't be written is not a command line that makes no sense.
func TestResultsThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--help"}, {"run", "--help"}, {"help", "run"}, {"version"}, {"completion", "bash"}, {"ls"}, {"--output", "json", "ls"}, {"inspect", "k"}} {
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		cmd := lockfabric(t, args...)
		cmd.Stdout = full
		var stderr strings.Builder
		cmd.Stderr = &stderr
		_ = cmd.Run()
		_ = full.Close()
		if code := cmd.ProcessState.ExitCode(); code != 70 || !strings.HasPrefix(stderr.String(), "lockfabric: writing the result: ") {
			t.Errorf("%q: exit code %d, %q", args, code, stderr.String())
		}
	}
}

// Nothing stays held when the token got lost.
func TestUnwritableToken(t *testing.T) {
	t.Parallel()
	m := manager(t)
	p, _ := script(t, "sh", `lf lock k >/dev/full; echo "code $?"; read x`)
	p.expect("code 70")
	waitFree(t, m)
}
