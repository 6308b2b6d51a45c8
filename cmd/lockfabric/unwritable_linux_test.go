package main

import (
	"os"
	"strings"
	"testing"
	"time"
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

// A watch ends when its reader has ended, as "| head -1" does, and not only when the next change comes.
func TestWatchWithoutReader(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"ls", "--watch"}, {"tree", "--watch"}, {"inspect", "--watch", "k"}, {"deadlocks", "--watch"}, {"elect", "--observe", "k"}} {
		t.Run(args[0], func(t *testing.T) {
			t.Parallel()
			m := manager(t)
			if _, err := m.Acquire(t.Context(), "k"); err != nil {
				t.Fatal(err)
			}
			cmd := lockfabric(t, args...)
			out, err := cmd.StdoutPipe()
			var stderr strings.Builder
			cmd.Stderr = &stderr
			if err == nil {
				err = cmd.Start()
			}
			if err != nil {
				t.Fatal(err)
			}
			defer time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() }).Stop()
			if _, err := out.Read(make([]byte, 1<<16)); err != nil {
				t.Error(err)
			}
			_ = out.Close()
			_ = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != 141 || strings.Contains(stderr.String(), reported) {
				t.Errorf("exit code %d, %q", code, stderr.String())
			}
		})
	}
}
