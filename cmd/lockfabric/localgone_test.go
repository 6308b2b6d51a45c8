//go:build unix

package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What people remove or replace under the local server costs its holders their locks,
// and lets nobody in beside them.
func TestRemovedDirectoryLetsNobodyIn(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(dir string) error{
		"directory": os.RemoveAll,
		"streams":   func(dir string) error { return os.RemoveAll(filepath.Join(dir, storeDir, "jetstream")) },
		"replaced": func(dir string) error {
			if err := os.Rename(dir, dir+".old"); err != nil {
				return err
			}
			return os.MkdirAll(dir, dirMode)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := freshMachine(t)
			inside := filepath.Join(t.TempDir(), "inside")
			holder := start(t, m.command("run", "k", "--ttl", "2s", "--", "sh", "-c",
				`touch "$0"; trap 'rm "$0"; exit 0' TERM; echo in; while :; do sleep 0.02; done`, inside))
			holder.expect("in")
			other := start(t, m.command("run", "other", "--ttl", "2s", "--", self(t), "child", "TERM"))
			other.ready()
			if err := harm(m.dir); err != nil {
				t.Fatal(err)
			}
			second := func() int {
				code, _, stderr := run(t, m.command("--timeout", "40s", "run", "k", "--wait", "0", "--", "test", "!", "-e", inside))
				if !slices.Contains([]int{0, 69, 75}, code) { // 69: the server was just ending
					t.Fatalf("exit code %d, %s", code, stderr)
				}
				return code
			}
			eventually(t, "end of the hold", func() bool { return second() == 0 })
			holder.exits(76)
			other.expect("got TERM")
			other.exits(76)
		})
	}
}

// While the leases of before last, a command says why it does not get in.
func TestClosedLocalServerSaysUntilWhen(t *testing.T) {
	t.Parallel()
	m := freshMachine(t)
	holder := start(t, m.command("run", "k", "--ttl", "20s", "--", self(t), "child", "TERM"))
	holder.ready()
	if err := os.RemoveAll(m.dir); err != nil {
		t.Fatal(err)
	}
	eventually(t, "news of the closed server", func() bool {
		s, err := m.state()
		return err == nil && !s.ClosedUntil.IsZero()
	})
	// One that ends meanwhile keeps nobody from waiting.
	for _, pid := range m.processes() {
		if p, err := os.FindProcess(pid); err == nil {
			_ = p.Kill()
		}
	}
	code, _, stderr := run(t, m.command("--timeout", "1s", "run", "k", "--wait", "0", "--", "true"))
	if code != 69 || !strings.Contains(stderr, "files were removed while locks were held") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	holder.signal(killable)
}

// The address alone is written again; all else stays as it is.
func TestRemovedAddressIsWrittenAgain(t *testing.T) {
	t.Parallel()
	m := freshMachine(t)
	holder := start(t, m.command("run", "k", "--", self(t), "child", "TERM"))
	holder.ready()
	was := m.mustState()
	path := filepath.Join(m.dir, stateFile)
	for name, harm := range map[string]func() error{
		"removed": func() error { return os.Remove(path) },
		"damaged": func() error { return os.WriteFile(path, []byte("{"), 0o600) },
	} {
		if err := harm(); err != nil {
			t.Fatal(err)
		}
		if code, _, stderr := run(t, m.command("run", "k", "--wait", "0", "--", "true")); code != 75 {
			t.Errorf("%s: exit code %d, %s", name, code, stderr)
		}
		if now := m.mustState(); now != was {
			t.Errorf("%s: state %+v, was %+v", name, now, was)
		}
	}
	holder.signal(killable)
	holder.expect("got TERM")
	holder.exits(0)
}

// Both kinds of guard keep a path to one server, whatever becomes of the directory,
// and end with it.
func TestGuard(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	for name, take := range map[string]func(string) (func(), error){
		"of the system": guard,
		"file":          func(dir string) (func(), error) { return guardFile(dir, base) },
	} {
		dir := filepath.Join(t.TempDir(), "d")
		again := func() (func(), error) {
			if err := os.MkdirAll(dir, dirMode); err != nil {
				t.Fatal(err)
			}
			return take(dir)
		}
		release, err := again()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := again(); !errors.Is(err, errGuarded) {
			t.Errorf("%s: second: %v", name, err)
		}
		release()
		// Another test's process that is starting just now has a copy of the open file until it runs its program.
		eventually(t, "end of the guard "+name, func() bool { release, err = again(); return !errors.Is(err, errGuarded) })
		if err != nil {
			t.Errorf("%s: after the first: %v", name, err)
		} else {
			release()
		}
	}
}
