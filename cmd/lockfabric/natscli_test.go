//go:build unix

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
)

// stockNATS builds the pinned nats command, or takes it from Go's build cache, and
// returns command lines on the server of the tests. The first build takes minutes.
func stockNATS(t *testing.T) func(args ...string) *exec.Cmd {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nats")
	build := exec.Command("go", "build", "-C", "../../internal/natscli", "-buildvcs=false", "-o", path, "github.com/nats-io/natscli/nats")
	build.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the nats command: %v\n%s", err, out)
	}
	home := t.TempDir()
	return func(args ...string) *exec.Cmd {
		cmd := exec.Command(path, append([]string{"--server", server.ClientURL()}, args...)...)
		// No context or settings of whoever runs the tests.
		cmd.Env = []string{"HOME=" + home, "XDG_CONFIG_HOME=" + home, "PATH=" + os.Getenv("PATH"), "TERM=dumb"}
		return cmd
	}
}

// storedRecord is what the stock command prints of a lock, as docs/inspecting.md
// explains it.
type storedRecord struct {
	Kind    string
	Holders []struct{ ID, Mode, Token, Owner string }
	Waiters []struct{ ID, Mode, Queued string }
}

// aLongQueue looks at a lock for which more wait than are stored as objects.
func aLongQueue(t *testing.T, command func(args ...string) *exec.Cmd) {
	m, all := manager(t), sync.WaitGroup{}
	defer all.Wait()
	lock, err := m.Acquire(t.Context(), "stock")
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Release(context.Background())
	for range 9 {
		all.Go(func() {
			if l, err := m.Acquire(context.WithoutCancel(t.Context()), "stock"); err != nil || l.Release(context.Background()) != nil {
				t.Error(err)
			}
		})
	}
	for waiting := 0; waiting < 9; {
		info, err := m.Inspect(t.Context(), "stock")
		if err != nil {
			t.Fatal(err)
		}
		waiting = len(info.Waiters)
	}
	_, stdout, _ := run(t, command("kv", "get", fabricName(t)+"-locks", "stock", "--raw"))
	var rec struct {
		V       int
		Waiters []string
	}
	if err := json.Unmarshal([]byte(stdout), &rec); err != nil || rec.V != 4 || len(rec.Waiters) != 9 {
		t.Fatalf("%s: %v", stdout, err)
	}
	lease, _, _ := strings.Cut(lock.ID(), ".")
	first := regexp.MustCompile(`^#` + lease + `/\d+\.\d+X@\d+\+\d+$`)
	other := regexp.MustCompile(`^0\.\d+X(@\d+|\*)?(:\d+)?([+-]\d+)?$`)
	for i, text := range rec.Waiters {
		if want := map[bool]*regexp.Regexp{true: first, false: other}[i == 0]; !want.MatchString(text) {
			t.Errorf("waiter %d is %q, not %s", i, text, want)
		}
	}
}

// What the documentation shows is what the stock command does.
func TestStockNATS(t *testing.T) {
	t.Parallel()
	command := stockNATS(t)
	t.Run("inside", func(t *testing.T) { exampleInside(t, command().Path) })
	t.Run("queue", func(t *testing.T) { aLongQueue(t, command) })
	nats := func(args ...string) string {
		t.Helper()
		code, stdout, stderr := run(t, command(args...))
		if code != 0 {
			t.Fatalf("nats %v: exit code %d\n%s%s", args, code, stdout, stderr)
		}
		return stdout
	}
	m := manager(t)
	locks, leases := fabricName(t)+"-locks", fabricName(t)+"-leases"
	record := func() (rec storedRecord) {
		t.Helper()
		if err := json.Unmarshal([]byte(nats("kv", "get", locks, "orders.42", "--raw")), &rec); err != nil {
			t.Fatal(err)
		}
		return rec
	}
	// token reads a decimal, and takes one below 2048 for a ticket of the revision of the key.
	token := func(text string) uint64 {
		t.Helper()
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if n < 2048 {
			header := nats("kv", "get", locks, "orders.42")
			found := regexp.MustCompile(`revision: (\d+)`).FindStringSubmatch(header)
			if found == nil {
				t.Fatalf("no revision in %q", header)
			}
			rev, _ := strconv.ParseUint(found[1], 10, 64)
			n += rev * 2048
		}
		return n
	}

	live := start(t, command("kv", "watch", locks, "orders.>"))
	// changes waits for a line of the live watch.
	changes := func(kind, with string) {
		t.Helper()
		for {
			line := live.line()
			if line == "" && live.lines.Err() == nil && !live.lines.Scan() {
				t.Fatalf("no %s with %q in the watch", kind, with)
			}
			if strings.Contains(line, " "+kind+" "+locks+" > orders.42") && strings.Contains(line, with) {
				return
			}
		}
	}
	// The watch shows what it finds when it begins, so it is ready for the rest
	// once it has shown this.
	lock, err := m.Acquire(t.Context(), "orders/42", fabric.WithOwner("Zoe"))
	if err != nil {
		t.Fatal(err)
	}
	changes("PUT", `"holders":[{"id":"`+lock.ID()+`"`)

	if out := nats("kv", "ls"); !strings.Contains(out, locks) || !strings.Contains(out, leases) {
		t.Errorf("kv ls:\n%s", out)
	}
	if out := nats("kv", "ls", locks); strings.TrimSpace(out) != "orders.42" {
		t.Errorf("kv ls of the locks: %q", out)
	}
	rec := record()
	if len(rec.Holders) != 1 || rec.Holders[0].ID != lock.ID() || rec.Holders[0].Mode != "X" || rec.Holders[0].Owner != "Zoe" || token(rec.Holders[0].Token) != lock.Token() {
		t.Errorf("hold %s with token %d: %+v", lock.ID(), lock.Token(), rec)
	}
	lease, _, _ := strings.Cut(lock.ID(), ".")
	var who struct {
		State, Host string
		PID         int
	}
	if err := json.Unmarshal([]byte(nats("kv", "get", leases, lease, "--raw")), &who); err != nil || who.Host != hostname() || who.PID != os.Getpid() || who.State != "live" {
		t.Errorf("lease %s: %+v, %v", lease, who, err)
	}
	for _, verb := range []string{"info", "status"} {
		if out := nats("kv", verb, locks); !strings.Contains(out, "KV_"+locks) || !regexp.MustCompile(`Values Stored: 1\b`).MatchString(out) {
			t.Errorf("kv %s:\n%s", verb, out)
		}
	}

	next := make(chan *fabric.Lock, 1)
	go func() {
		l, err := m.Acquire(context.WithoutCancel(t.Context()), "orders/42")
		if err != nil {
			t.Error(err)
		}
		next <- l
	}()
	changes("PUT", `"waiters":[`)
	// Now the token is written out, because the revision is another one.
	if rec := record(); len(rec.Waiters) != 1 || rec.Holders[0].Token != fmt.Sprintf("%020d", lock.Token()) || token(rec.Waiters[0].Queued) <= lock.Token() {
		t.Errorf("with a waiter: %+v, token %d", rec, lock.Token())
	}
	if err := lock.Release(context.Background()); err != nil {
		t.Fatal(err)
	}
	after := <-next
	if after == nil {
		t.FailNow()
	}
	changes("PUT", `"holders":[{"id":"`+after.ID()+`"`)
	if rec := record(); len(rec.Holders) != 1 || token(rec.Holders[0].Token) != after.Token() {
		t.Errorf("after the release: %+v, token %d", rec, after.Token())
	}
	if err := after.Release(context.Background()); err != nil {
		t.Fatal(err)
	}
	changes("PURGE", "")
}
