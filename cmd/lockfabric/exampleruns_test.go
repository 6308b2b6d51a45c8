//go:build unix

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// inPath returns an environment in which "lockfabric" is the command, on a fabric of the test.
func inPath(t *testing.T, more ...string) []string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Symlink(self(t), filepath.Join(dir, "lockfabric")); err != nil {
		t.Fatal(err)
	}
	path := strings.Join(append(append([]string{dir}, more...), os.Getenv("PATH")), string(os.PathListSeparator))
	return append(bare(t).Env, "PATH="+path, "LOCKFABRIC_SERVER="+server.ClientURL(), "LOCKFABRIC_FABRIC="+fabricName(t))
}

// Three hosts whose clocks differ start the job one after the other, each after the job
// of the one before has ended.
func TestExampleCron(t *testing.T) {
	t.Parallel()
	table, err := os.ReadFile("../../examples/cron/crontab")
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^0 2 \* \* \* (.*)$`).FindSubmatch(table)
	if line == nil {
		t.Fatalf("no job in %s", table)
	}
	const hold = " --hold-at-least 1m"
	if !strings.Contains(string(line[1]), hold) {
		t.Fatalf("no%s in %s", hold, line[1])
	}
	for want, text := range map[int]string{1: string(line[1]), 3: strings.Replace(string(line[1]), hold, "", 1)} {
		log := filepath.Join(t.TempDir(), "log")
		backups := func() int {
			data, err := os.ReadFile(log)
			if err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
			return strings.Count(string(data), " makes a backup under token ")
		}
		job := func() *proc {
			cmd := exec.Command("sh", "-c", "exec "+text)
			cmd.Dir = "../../examples/cron"
			cmd.Env = append(inPath(t), "BACKUP_LOG="+log)
			return start(t, cmd)
		}
		first := job()
		eventually(t, "backup", func() bool { return backups() == 1 })
		if want == 3 {
			first.exits(0)
		}
		for range 2 {
			p := job()
			p.exits(0)
			if p.err.String() != "" {
				t.Errorf("stderr %q", p.err)
			}
		}
		if n := backups(); n != want {
			t.Errorf("%s: %d backups, want %d", text, n, want)
		}
		if want == 1 { // it would hold on for the rest of the minute
			first.signal(killable)
			first.wait()
		}
	}
}

// exampleInside runs the example with the stock command.
func exampleInside(t *testing.T, nats string) {
	cmd := exec.Command("../../examples/inside/inside.sh")
	cmd.Env = append(inPath(t, filepath.Dir(nats)), "XDG_CONFIG_HOME="+t.TempDir(), "NATS_CONTEXT=")
	code, stdout, stderr := run(t, cmd)
	if code != 0 {
		t.Fatalf("exit code %d\n%s%s", code, stdout, stderr)
	}
	for _, want := range []string{"\nresource-key\n", `"owner":"Ada"`, `"owner":"Bob"`, `"host":"` + hostname(), "Bob has it\n", "PURGE"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
}
