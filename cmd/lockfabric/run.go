package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/kv"
)

type runCmd struct {
	Key           string            `arg:"" complete:"lock" help:"Name of the lock; '/' separates levels."`
	Command       []string          `arg:"" name:"cmd" passthrough:"partial" help:"Command to run, best after '--', with its arguments; flags of lockfabric stand before it."`
	Mode          string            `xor:"mode" placeholder:"IS|IX|S|SIX|U|X" complete:"IS,IX,S,SIX,U,X" help:"What else may be held beside it: X, the default, excludes all others, S those who write, U all but S and IS; IS, IX and SIX announce locks on parts."`
	Shared        bool              `xor:"mode" help:"The same as --mode S: hold the lock together with others who do so, too."`
	Wait          *time.Duration    `placeholder:"DURATION" help:"How long to wait for the lock; 0 only tries. Without it, as long as it takes. A holder that looks dead is observed for about its TTL on top."`
	DeadlineCheck bool              `help:"Don't queue, exit with 75 at once, when the wait is expected to last longer than --wait. Nothing is expected of a lock that nobody has waited for."`
	TTL           time.Duration     `default:"30s" help:"How long the lock stays taken after the last sign of life. Under 15s a server's failover can cost the lock."`
	KillAfter     time.Duration     `default:"10s" help:"Time from SIGTERM to SIGKILL when the lock is lost."`
	Owner         string            `help:"Identity to hold the lock under; the same one can't take it twice. Each run is its own by default."`
	Meta          map[string]string `placeholder:"KEY=VALUE" help:"Text that 'inspect' shows with the holder; can be repeated."`
	NoTakeover    bool              `help:"When the time to wait is over, don't observe a holder that looks dead."`
	NoProgress    bool              `help:"Don't tell on the terminal who is in the way while waiting."`
}

// Help tells of the exit codes.
func (*runCmd) Help() string {
	return "CMD gets LOCKFABRIC_KEY and LOCKFABRIC_TOKEN, the fencing token, in its environment. Signals are passed on to its process group. " +
		"If the lock is lost the group gets SIGTERM, and SIGKILL after --kill-after.\n\n" +
		"Exit code: CMD's own, or 128+n when signal n ended it; 75: not acquired, somebody else holds the lock; 76: the lock was lost while CMD ran; " +
		"77: the server refuses the credentials; 69: no server; 65: the name is no lock; 64: usage; 126, 127: CMD can't be run, not found; 70: a defect."
}

// Run holds the lock while the command runs.
func (r *runCmd) Run(ctx context.Context, c *cli, s *streams) error {
	if r.Command[0] == "--" { // what the parser passes through begins with it
		r.Command = r.Command[1:]
	}
	if err := r.validate(); err != nil {
		return err
	}
	// Before the lock is taken: nobody should wait for a spelling mistake.
	path, err := exec.LookPath(r.Command[0])
	if err != nil {
		return cannotRun(r.Command[0], err)
	}
	inheritIgnored()
	sigs := make(chan os.Signal, 64)
	catch(sigs, endings)
	defer signal.Stop(sigs)
	catch(make(chan os.Signal, 1), brokenPipe)

	m, lock, err := r.obtain(ctx, c, s, sigs)
	if err != nil {
		return err
	}
	v := &supervisor{lock: lock, sigs: sigs, killAfter: r.KillAfter, log: s.log}
	code, err := v.run(r.command(path, lock))
	rerr := impatiently(sigs, func() error { return letGo(ctx, m, lock) })
	if rerr != nil && err == nil {
		if errors.Is(rerr, fabric.ErrLost) {
			err = rerr
		} else {
			s.log.Warn("the lock is not confirmed to be released; it ends with its TTL at the latest", "key", r.Key, "ttl", r.TTL, "error", rerr)
		}
	}
	switch {
	case errors.Is(err, fabric.ErrLost):
		return fmt.Errorf("%w: others may have worked while %s did: check what it wrote, or have the token checked", err, r.Command[0])
	case err != nil:
		return cannotRun(r.Command[0], err)
	case code != 0:
		return &exitError{code: code}
	}
	return nil
}

// How long run stays after its command has ended: releaseTime for the release, and then
// what Manager.Close takes, four seconds. After a loss there is nothing to release, and
// closing is waited for no longer than closeTime.
const (
	releaseTime = 5 * time.Second
	closeTime   = 500 * time.Millisecond
)

// letGo releases the lock and closes the manager.
func letGo(ctx context.Context, m *fabric.Manager, lock *fabric.Lock) error {
	late := time.AfterFunc(releaseTime, func() { _ = m.Close() }) // which ends the release, too
	defer late.Stop()
	err := lock.Release(ctx)
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_ = m.Close()
	}()
	var enough <-chan time.Time
	if errors.Is(err, fabric.ErrLost) {
		enough = time.After(closeTime)
	}
	select {
	case <-closed:
	case <-enough:
	}
	return err
}

func (r *runCmd) validate() error {
	switch {
	case r.Wait != nil && *r.Wait < 0:
		return usageError("run --wait=%v: give 0 to only try, or leave it out to wait without limit", *r.Wait)
	case r.DeadlineCheck && (r.Wait == nil || *r.Wait == 0):
		return usageError("run --deadline-check: give the time that is to be kept with --wait")
	case !slices.Contains([]string{"", "IS", "IX", "S", "SIX", "U", "X"}, r.Mode):
		return usageError("run --mode=%s: give one of IS, IX, S, SIX, U, X", printable(r.Mode))
	case r.KillAfter < 0:
		return usageError("run --kill-after=%v: give 0 or more", r.KillAfter)
	case len(r.Command) == 0 || r.Command[0] == "":
		return usageError("run: the command is empty: give one after --")
	}
	return checkName(r.Key)
}

// checkName refuses a name that no lock can have, before any server is asked.
func checkName(key string) error {
	_, err := kv.EncodeName(key)
	return err
}

// obtain connects and acquires. A signal that asks to end meanwhile is the
// error then, and nothing is held.
func (r *runCmd) obtain(ctx context.Context, c *cli, s *streams, sigs <-chan os.Signal) (*fabric.Manager, *fabric.Lock, error) {
	ctx, again, done := interruptible(ctx, sigs)
	defer done()
	c.once = true
	defer reaping()()
	m, err := c.connect(ctx, s, fabric.WithTTL(r.TTL), fabric.WithLabel(label(r.Command[0])))
	if err != nil {
		return nil, nil, err
	}
	ctx, leave := c.welcome.guard(ctx)
	defer leave()
	erase := func() {}
	if !r.NoProgress && c.Output == "text" && s.status.usable() {
		erase = startProgress(ctx, m, r.Key, s.status)
	}
	var lock *fabric.Lock
	err = unless(again, func() error {
		l, err := r.acquire(ctx, m)
		erase()
		if err == nil {
			if done(); ctx.Err() != nil { // what comes later is for the command
				_ = l.Release(ctx)
			}
		}
		if err != nil || ctx.Err() != nil {
			err = r.explain(c.welcome.why(ctx, errors.Join(err, ctx.Err())), m)
			_ = m.Close()
			return err
		}
		lock = l
		return nil
	})
	if errors.Is(err, errGivenUp) {
		return nil, nil, fmt.Errorf("%w, but no server has confirmed that: its place in the queue ends with its TTL", interrupted(ctx, err))
	}
	if err != nil {
		return nil, nil, err
	}
	return m, lock, nil
}

func (r *runCmd) acquire(ctx context.Context, m *fabric.Manager) (*fabric.Lock, error) {
	opts := []fabric.AcquireOption{fabric.WithMetadata(r.Meta)}
	switch {
	case r.Shared:
		opts = append(opts, fabric.WithMode(fabric.Shared))
	case r.Mode != "":
		opts = append(opts, fabric.WithMode(fabric.Mode(r.Mode)))
	}
	if r.Owner != "" {
		opts = append(opts, fabric.WithOwner(r.Owner))
	}
	if r.DeadlineCheck {
		opts = append(opts, fabric.WithDeadlineCheck())
	}
	if r.Wait == nil {
		return m.Acquire(ctx, r.Key, opts...)
	}
	if *r.Wait > 0 {
		l, err := m.Acquire(ctx, r.Key, append(opts, fabric.WithWaitLimit(*r.Wait))...)
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, fabric.ErrUnavailable) {
			return l, err
		}
	}
	// To try, also after a wait: it tells who is in the way, and it replaces a
	// dead holder whose TTL is longer than the wait. Else a job that never waits so
	// long would never run again.
	if r.NoTakeover {
		opts = append(opts, fabric.WithoutTakeover())
	}
	return m.TryAcquire(ctx, r.Key, append(opts, fabric.WithFailFast())...)
}

func (r *runCmd) explain(err error, m *fabric.Manager) error {
	err = r.named(err, m)
	switch {
	case errors.Is(err, fabric.ErrAlreadyHeld):
		return fmt.Errorf("%w: end the other run of this --owner, or give another one", err)
	case exitCode(err) == exitNotAcquired:
		return fmt.Errorf("%w: see 'lockfabric inspect', or wait longer with --wait", err)
	}
	return err
}

// nameTime bounds the look at who is in the way of a lock.
const nameTime = time.Second

// named has a refusal say on which host, in which process and for what the lock is
// held, in place of an id.
func (r *runCmd) named(err error, m *fabric.Manager) error {
	var held *fabric.HeldError
	if !errors.As(err, &held) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), nameTime)
	defer cancel()
	info, ierr := m.Inspect(ctx, r.Key)
	if ierr != nil {
		return err
	}
	for _, p := range append(info.Holders, info.Waiters...) {
		if p.ID == held.Owner {
			return &reworded{err, strings.Replace(err.Error(), held.Owner, holder(p), 1)}
		}
	}
	return err
}

// command prepares the child.
func (r *runCmd) command(path string, lock *fabric.Lock) *exec.Cmd {
	cmd := exec.Command(path)
	cmd.Args = r.Command
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "LOCKFABRIC_KEY="+lock.Key(), "LOCKFABRIC_TOKEN="+strconv.FormatUint(lock.Token(), 10))
	return cmd
}

// label is what inspection shows of the command: not its arguments, which may be
// secret.
func label(command string) string {
	name := []rune(oneLine(filepath.Base(command)))
	return string(name[:min(len(name), fabric.MaxOwnerLen/4)])
}

func cannotRun(command string, err error) error {
	code, what, advice := exitCannotRun, "can't be run", ""
	var starting *os.PathError
	switch {
	case errors.Is(err, os.ErrNotExist) && errors.As(err, &starting) && starting.Op == "fork/exec": // it was there
		code, advice = exitNotFound, ": look whether the interpreter that its first line names exists"
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, os.ErrNotExist):
		code, what = exitNotFound, "was not found"
	case errors.Is(err, exec.ErrDot):
		advice = ": if that one is meant write ./" + command
	case errors.Is(err, syscall.ENOEXEC):
		advice = ": begin a script with a line such as #!/bin/sh"
	}
	return &exitError{code: code, cause: fmt.Errorf("command %q %s: %w%s", command, what, err, advice)}
}
