package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

type lockCmd struct {
	Key    string            `arg:"" complete:"lock" help:"Name of the lock; '/' separates levels."`
	Mode   string            `xor:"mode" placeholder:"IS|IX|S|SIX|U|X" complete:"IS,IX,S,SIX,U,X" help:"Mode, as of run. X, the default, excludes all others."`
	Shared bool              `xor:"mode" help:"Same as --mode S: shared with other holders in this mode."`
	Stdin  bool              `help:"Stay in the foreground, and hold the lock until standard input is closed."`
	TTL    time.Duration     `default:"30s" help:"How long the hold lasts after the last renewal. Under 15s, a failover of the server can lose it."`
	Meta   map[string]string `placeholder:"KEY=VALUE" help:"Text that 'inspect' shows with the holder; can be repeated."`
	claiming
}

// parentEnv tells the process in the background, which keeps the lock, whose end to wait for.
const parentEnv = "LOCKFABRIC_LOCK_PARENT"

// locked is the JSON of lock.
type locked struct {
	Key   string `json:"key"`
	Token uint64 `json:"token,string"` // fencing token
}

// Run holds the lock for another program.
func (l *lockCmd) Run(ctx context.Context, c *cli, s *streams) error {
	if err := cmp.Or(checkMode("lock", l.Mode), checkName(l.Key)); err != nil {
		return err
	}
	sigs := make(chan os.Signal, 64)
	catch(sigs, endings)
	defer signal.Stop(sigs)
	catch(make(chan os.Signal, 1), brokenPipe)
	if l.Stdin {
		var closed atomic.Bool
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			closed.Store(true)
			sigs <- syscall.SIGTERM
		}()
		err := l.hold(ctx, c, s, sigs)
		if e := (*exitError)(nil); errors.As(err, &e) && e.code == exitSignal+signalNumber(syscall.SIGTERM) && closed.Load() {
			e.cause = errors.New("standard input was closed while waiting: nothing is held")
		}
		return err
	}
	text := os.Getenv(parentEnv)
	if text == "" {
		return delegate(s, sigs)
	}
	parent, err := strconv.Atoi(text)
	if err != nil {
		return fmt.Errorf("%s: %w", parentEnv, err)
	}
	return l.keep(ctx, c, s, parent, sigs)
}

// delegate starts a process that keeps the lock, and waits until it holds the lock.
func delegate(s *streams, sigs <-chan os.Signal) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	parent := os.Getppid()
	keeper := exec.Command(exe, os.Args[1:]...)
	keeper.Env = append(os.Environ(), parentEnv+"="+strconv.Itoa(parent))
	keeper.Stderr = os.Stderr
	keeper.SysProcAttr = detached()
	// The keeper ends if this is closed before it has received a byte.
	confirm, cerr := keeper.StdinPipe()
	result, rerr := keeper.StdoutPipe()
	if err = cmp.Or(cerr, rerr); err == nil {
		err = keeper.Start()
	}
	if err != nil {
		return err
	}
	defer func() { _ = confirm.Close() }()
	defer listen(sigs, func(sig os.Signal) bool {
		if keeper.Process.Signal(sig) != nil {
			_ = confirm.Close()
		}
		return false
	})()
	text, err := io.ReadAll(result)
	if err != nil || len(text) == 0 {
		if err := keeper.Wait(); keeper.ProcessState.ExitCode() <= 0 {
			return fmt.Errorf("lock: the process that was to keep it has ended: %w", cmp.Or(err, errGivenUp))
		}
		return &exitError{code: keeper.ProcessState.ExitCode()} // the keeper has already printed the reason
	}
	// If the parent is still the same process, the keeper watches the right one.
	if os.Getppid() != parent {
		return errors.New("lock: the process that it was for has ended")
	}
	if _, err = s.out.Write(text); err == nil {
		_, err = confirm.Write([]byte("\n"))
	}
	return writeError(err)
}

// keep holds the lock until the parent has ended.
func (l *lockCmd) keep(ctx context.Context, c *cli, s *streams, parent int, sigs chan os.Signal) error {
	closeInherited()
	gone, terminate, err := watchProcess(parent)
	if err != nil {
		return fmt.Errorf("lock: looking for the end of process %d: %w", parent, err)
	}
	go func() {
		if n, _ := os.Stdin.Read(make([]byte, 1)); n == 0 {
			sigs <- syscall.SIGTERM
		}
	}()
	go func() {
		<-gone // also while it waits
		sigs <- syscall.SIGTERM
	}()
	err = l.hold(ctx, c, s, sigs)
	if errors.Is(err, fabric.ErrLost) {
		terminate()
	}
	return err
}

// hold acquires the lock, prints the token, and holds the lock until a signal comes.
func (l *lockCmd) hold(ctx context.Context, c *cli, s *streams, sigs chan os.Signal) error {
	t := &task{holding: &holding{TTL: l.TTL, NoProgress: l.Quiet}, name: "lock", key: l.Key, acquire: l.acquire, advice: l.advice}
	m, h, err := t.obtain(ctx, c, s, sigs)
	if err != nil {
		return l.conflict(err)
	}
	v := locked{Key: h.Key(), Token: h.Token()}
	err = s.print(c.Output, v, func(w io.Writer) { fmt.Fprintln(w, v.Token) })
	if err == nil && !l.Stdin {
		err = os.Stdout.Close() // the parent waits for this
	}
	for over := err != nil; !over; {
		select {
		case sig := <-sigs:
			over = slices.Contains(endings, sig)
		case <-h.Lost():
			over, err = true, h.Err()
		}
	}
	err = t.end(ctx, m, h, sigs, s, err, false)
	if errors.Is(err, fabric.ErrLost) {
		return fmt.Errorf("%w: others may have worked while it was taken for held: check what was written, or have the token checked", err)
	}
	return err
}

func (l *lockCmd) acquire(ctx context.Context, m *fabric.Manager) (held, error) {
	return l.claim(ctx, m, l.Key, fabric.Claim{Kind: fabric.KindLock, Mode: lockMode(l.Mode, l.Shared)}, fabric.WithMetadata(l.Meta))
}

func lockMode(name string, shared bool) fabric.Mode {
	if shared {
		return fabric.Shared
	}
	return fabric.Mode(name)
}

var modes = []string{"IS", "IX", "S", "SIX", "U", "X"}

func checkMode(what, name string) error {
	if name != "" && !slices.Contains(modes, name) {
		return usageError("%s --mode=%s: give one of IS, IX, S, SIX, U, X", what, printable(name))
	}
	return nil
}
