package chaos_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/fabric"
)

// holderEnv makes the test binary a process that holds a lock. Its value is
// "<url> <lock> <ttl>". With turnsEnv it takes the coalesced road, with turns.
const (
	holderEnv = "LOCKFABRIC_TEST_HOLDER"
	turnsEnv  = "LOCKFABRIC_TEST_TURNS"
)

// registerBucket is the user's bucket in which the processes write to a register.
const registerBucket = "chaos-register"

// holder acquires, prints "granted <id>", and reads one command a line from its input:
//
//	write TEXT   writes to the register with its token, without a check before
//	lost         waits for the loss and prints it
//	release      releases
//	close        closes the manager and ends
//
// The end of the input ends it without closing anything.
func holder() int {
	var url, lock string
	var ttl time.Duration
	if _, err := fmt.Sscan(os.Getenv(holderEnv), &url, &lock); err != nil {
		return 2
	}
	ttl, err := time.ParseDuration(os.Getenv(holderEnv)[strings.LastIndexByte(os.Getenv(holderEnv), ' ')+1:])
	if err == nil {
		err = obey(url, lock, ttl)
	}
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	return 0
}

func obey(url, lock string, ttl time.Duration) error {
	ctx := context.Background()
	opts := []fabric.Option{patiently, fabric.WithTTL(ttl)}
	turns := os.Getenv(turnsEnv) != ""
	if turns {
		opts = append(opts, withTurns...)
	}
	m, err := fabric.Connect(ctx, url, opts...)
	if err != nil {
		return err
	}
	if turns {
		if err := awaitOwner(ctx, m); err != nil {
			return err
		}
	}
	l, err := m.Acquire(ctx, lock)
	if err != nil {
		return err
	}
	nc, err := nats.Connect(url, connectTimeout)
	if err != nil {
		return err
	}
	register, err := openRegister(ctx, nc, lock)
	if err != nil {
		return err
	}
	fmt.Println("granted", l.ID())
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		command, text, _ := strings.Cut(in.Text(), " ")
		switch command {
		case "write":
			_, err := register.Write(ctx, l.Token(), []byte(text))
			fmt.Println("wrote", outcome(err))
		case "lost":
			<-l.Lost()
			fmt.Println("lost", outcome(l.Err()))
		case "release":
			fmt.Println("released", outcome(l.Release(ctx)))
		case "close":
			return m.Close()
		}
	}
	return nil
}

// outcome names the errors that the tests distinguish.
func outcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, fabric.ErrStaleToken):
		return "stale"
	case errors.Is(err, fabric.ErrLost):
		return "lost"
	}
	return err.Error()
}

func openRegister(ctx context.Context, nc *nats.Conn, key string) (*fabric.Register, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	bucket, err := js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: registerBucket})
	if err != nil {
		return nil, err
	}
	return fabric.NewRegister(bucket, key), nil
}

// process is a holder that a test has started.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string // closed at the end of its output
	id    string      // of its hold
}

// startHolder starts a holder and waits for its grant.
func startHolder(t *testing.T, url, lock string, ttl time.Duration) *process {
	t.Helper()
	p := launch(t, url, lock, ttl)
	p.id = p.expect("granted ")
	return p
}

// launch starts a process that is going to hold the lock.
func launch(t *testing.T, url, lock string, ttl time.Duration, env ...string) *process {
	t.Helper()
	return launchSelf(t, append(env, fmt.Sprintf("%s=%s %s %v", holderEnv, url, lock, ttl))...)
}

// launchSelf starts the test binary with more variables in its environment,
// which make it another program than the test.
func launchSelf(t *testing.T, env ...string) *process {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: exec.Command(exe), lines: make(chan string, 16)}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = os.Stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			p.lines <- s.Text()
		}
	}()
	t.Cleanup(p.kill)
	return p
}

// say sends commands without waiting for answers.
func (p *process) say(commands ...string) {
	p.t.Helper()
	if _, err := io.WriteString(p.in, strings.Join(commands, "\n")+"\n"); err != nil {
		p.t.Fatal(err)
	}
}

// expect waits for a line with this beginning and returns its rest.
func (p *process) expect(prefix string) string {
	p.t.Helper()
	select {
	case line, ok := <-p.lines:
		rest, found := strings.CutPrefix(line, prefix)
		if !ok || !found {
			p.t.Fatalf("holder says %q (ended: %v), expected %q", line, !ok, prefix)
		}
		return rest
	case <-testContext(p.t).Done():
		p.t.Fatalf("holder is silent, expected %q", prefix)
	}
	return ""
}

// kill ends the process as kill -9 does and waits for it.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.in.Close()
	for range p.lines { // Wait would close the pipe under its reader
	}
	_ = p.cmd.Wait()
}
