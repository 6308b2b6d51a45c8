package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/kv"
)

type runCmd struct {
	Key       string   `arg:"" complete:"lock,semaphore" help:"Name of the lock or semaphore; '/' separates levels."`
	Command   []string `arg:"" optional:"" name:"cmd" passthrough:"partial" help:"Command to run, with its arguments; put it after '--'. Flags of lockfabric come before it."`
	Line      string   `name:"command" short:"c" placeholder:"LINE" complete:"-" help:"Run this line with 'sh -c' instead of CMD."`
	Mode      string   `xor:"mode" placeholder:"IS|IX|S|SIX|U|X" complete:"IS,IX,S,SIX,U,X" help:"Mode: X, the default, excludes all others; S excludes writers; U excludes all but S and IS; IS, IX and SIX announce locks on parts."`
	Shared    bool     `xor:"mode" help:"Same as --mode S: shared with other holders in this mode."`
	Semaphore *int     `xor:"mode" placeholder:"N" complete:"-" from:"1" to:"2147483647" help:"Hold a permit of a semaphore with N permits instead of a lock. All users of the name must give the same N."`
	Permits   int      `default:"1" placeholder:"K" complete:"-" help:"How many permits of --semaphore to hold."`
	setFlags
	DeadlineCheck bool `help:"If the expected wait is longer than --wait, don't queue, but exit with 75 at once. A lock for which nobody has waited has no expected wait."`
	claiming
	holding
	durationFlags
}

func (r *runCmd) Run(ctx context.Context, c *cli, s *streams) error {
	r.Command = afterDashes(r.Command)
	if r.Line != "" {
		if len(r.Command) > 0 {
			return usageError("run --command: that is what is run: leave out the command at the end")
		}
		r.Command = []string{"sh", "-c", r.Line}
	}
	if err := r.validate(); err != nil {
		return err
	}
	r.NoProgress = r.NoProgress || r.Quiet
	t := &task{holding: &r.holding, durationFlags: r.durationFlags, name: "run", key: r.Key, command: r.Command, acquire: r.acquire, advice: r.advice}
	return r.conflict(t.run(ctx, c, s))
}

func (r *runCmd) validate() error {
	semaphore := r.Semaphore != nil
	switch {
	case r.DeadlineCheck && (r.Wait == nil || *r.Wait == 0):
		return usageError("run --deadline-check: give the time that is to be kept with --wait")
	case r.Permits < 1 || semaphore && r.Permits > *r.Semaphore:
		return usageError("run --permits=%d: give 1 to the number of --semaphore", r.Permits)
	case r.Permits > 1 && !semaphore:
		return usageError("run --permits=%d: say with --semaphore how many there are", r.Permits)
	case r.DeadlineCheck && semaphore:
		return usageError("run --deadline-check: nothing is expected of a semaphore; leave it out")
	}
	return cmp.Or(r.setFlags.validate(semaphore), checkMode("run", r.Mode), checkCommand("run", r.Command), checkName(r.Key))
}

// checkName refuses an invalid name before any request.
func checkName(key string) error {
	_, err := kv.EncodeName(key)
	return err
}

func (r *runCmd) acquire(ctx context.Context, m *fabric.Manager) (held, error) {
	c := fabric.Claim{Kind: fabric.KindLock, Mode: lockMode(r.Mode, r.Shared)}
	if r.Semaphore != nil {
		c = fabric.Claim{Kind: fabric.KindSemaphore, Permits: r.Permits, Limit: *r.Semaphore}
	}
	opts := []fabric.AcquireOption{fabric.WithMetadata(r.Meta)}
	if r.DeadlineCheck {
		opts = append(opts, fabric.WithDeadlineCheck())
	}
	if r.setFlags.given() {
		return r.claiming.ask(ctx, r.setFlags.acquire(m, r.Key, c.Mode), opts...)
	}
	return r.claim(ctx, m, r.Key, c, opts...)
}

// setFlags are the flags of a command that can hold setFlags locks at once.
type setFlags struct {
	Also  []string `sep:"none" placeholder:"KEY[=MODE]" complete:"lock" help:"Hold this lock as well, all or nothing; the default mode is X; can be repeated. The order of the names does not matter: sets never deadlock."`
	Path  bool     `help:"Also take intents on all levels above each lock: for a/b/c, on a and a/b. So the lock and exclusive locks of these levels exclude each other."`
	Under []string `sep:"none" placeholder:"NAME" complete:"lock" help:"Also take an intent on NAME, which contains the lock; can be repeated, with the outermost first."`
}

func (s *setFlags) given() bool { return len(s.Also)+len(s.Under) > 0 || s.Path }

func (s *setFlags) validate(semaphore bool) error {
	switch {
	case s.given() && semaphore:
		return usageError("run --semaphore: a permit is held alone; leave out --also, --path and --under")
	case len(s.Under) > 0 && (s.Path || len(s.Also) > 0):
		return usageError("run --under: it names all levels; leave out --path and --also")
	}
	names := slices.Clone(s.Under)
	for _, text := range s.Also {
		name, mode := keyAndMode(text)
		if name != text && !slices.Contains(modes, string(mode)) {
			return usageError("run --also=%s: after the last = give one of IS, IX, S, SIX, U, X", printable(text))
		}
		names = append(names, name)
	}
	for _, name := range names {
		if err := checkName(name); err != nil {
			return err
		}
	}
	return nil
}

// keyAndMode splits KEY=MODE. A name with a '=' needs a mode, so that a wrong mode is not a part of the name.
func keyAndMode(text string) (string, fabric.Mode) {
	if i := strings.LastIndexByte(text, '='); i >= 0 {
		return text[:i], fabric.Mode(text[i+1:])
	}
	return text, ""
}

// acquire returns a function that acquires all of them, or tries to.
func (s *setFlags) acquire(m *fabric.Manager, key string, mode fabric.Mode) acquirer {
	wants := []fabric.Want{{Key: key, Mode: mode, Path: s.Path}}
	for _, text := range s.Also {
		name, mode := keyAndMode(text)
		wants = append(wants, fabric.Want{Key: name, Mode: mode, Path: s.Path})
	}
	return func(ctx context.Context, try bool, opts ...fabric.AcquireOption) (held, error) {
		all, below := m.AcquireAll, m.AcquireHierarchy
		if try {
			all, below = m.TryAcquireAll, m.TryAcquireHierarchy
		}
		var set *fabric.Set
		var err error
		if len(s.Under) > 0 {
			levels := slices.Concat(s.Under[1:], []string{key})
			set, err = below(ctx, fabric.NewHierarchy(s.Under[0], levels...), mode, opts...)
		} else {
			set, err = all(ctx, wants, opts...)
		}
		if err != nil {
			return nil, err
		}
		return &heldSet{set, set.Lock(key)}, nil
	}
}

// heldSet is a set that is named after one of its members.
type heldSet struct {
	*fabric.Set
	named *fabric.Lock
}

func (h *heldSet) Key() string   { return h.named.Key() }
func (h *heldSet) Token() uint64 { return h.named.Token() }

type claiming struct {
	Wait       *time.Duration `placeholder:"DURATION" from:"0" give:"0 to only try, or leave it out to wait without limit" help:"How long to wait; 0 only tries. Without it, there is no limit. A holder that looks dead is observed for about its TTL in addition."`
	Owner      string         `help:"Owner of the hold. The same owner can't hold the lock twice. By default each run is an owner."`
	NoTakeover bool           `help:"At the end of --wait, don't observe a holder that looks dead."`

	ConflictExitCode *int `short:"E" placeholder:"N" complete:"-" from:"0" to:"255" help:"Exit code if others hold it, instead of 75."`
	Quiet            bool `short:"q" help:"Print nothing if others hold it, and show no progress. Other errors are printed."`
}

// conflict gives a refusal the exit code of --conflict-exit-code.
func (c *claiming) conflict(err error) error {
	if _, passed := errors.AsType[*exitError](err); passed || exitCode(err) != exitNotAcquired {
		return err
	}
	refused := &exitError{code: exitNotAcquired, cause: err}
	if c.ConflictExitCode != nil {
		refused.code = *c.ConflictExitCode
	}
	if c.Quiet {
		refused.cause = nil
	}
	return refused
}

func (c *claiming) claim(ctx context.Context, m *fabric.Manager, key string, what fabric.Claim, opts ...fabric.AcquireOption) (held, error) {
	return c.ask(ctx, func(ctx context.Context, try bool, opts ...fabric.AcquireOption) (held, error) {
		if try {
			what.Verb = "try"
		}
		h, err := m.Claim(ctx, key, what, opts...)
		if err != nil {
			return nil, err // not an interface with a nil hold
		}
		return h, nil
	}, opts...)
}

// acquirer acquires what a command holds, or tries to.
type acquirer func(ctx context.Context, try bool, opts ...fabric.AcquireOption) (held, error)

func (c *claiming) ask(ctx context.Context, acquire acquirer, opts ...fabric.AcquireOption) (held, error) {
	if c.Owner != "" {
		opts = append(opts, fabric.WithOwner(c.Owner))
	}
	if c.Wait == nil {
		return acquire(ctx, false, opts...)
	}
	if *c.Wait > 0 {
		h, err := acquire(ctx, false, append(opts, fabric.WithWaitLimit(*c.Wait))...)
		if err == nil || ctx.Err() != nil || !timeOver(err) {
			return h, err
		}
	}
	// A try after the wait reports who holds the lock, and replaces a dead holder whose TTL is longer than the wait.
	// Otherwise, a job that never waits that long would never run again.
	if c.NoTakeover {
		opts = append(opts, fabric.WithoutTakeover())
	}
	return acquire(ctx, true, append(opts, fabric.WithFailFast())...)
}

// timeOver reports whether a wait ended at its time limit, and not because no server answered.
func timeOver(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, fabric.ErrUnavailable) && !errors.Is(err, fabric.ErrUncertain)
}

func (*claiming) advice(err error) string {
	switch {
	case errors.Is(err, fabric.ErrAlreadyHeld):
		return "end the other run of this --owner, or give another one"
	case exitCode(err) == exitNotAcquired:
		return "see 'lockfabric inspect', or wait longer with --wait"
	}
	return ""
}

// durationFlags are the flags of commands that can hold it longer than CMD runs.
type durationFlags struct {
	HoldAtLeast  time.Duration `placeholder:"DURATION" from:"0" give:"0 or more" help:"Hold it for at least this time, even if CMD ends earlier, so that hosts whose clocks are late find it held. SIGINT and SIGTERM end this time."`
	WaitChildren bool          `help:"Hold it until all processes of CMD's process group have ended, including those in the background."`
}

// waitMinimum holds it until the minimum time since the start is over. It reports whether it had to wait.
func (t *task) waitMinimum(ctx context.Context, h held, since time.Time, s *streams, visible bool, sigs <-chan os.Signal) bool {
	until := since.Add(t.HoldAtLeast)
	if !time.Now().Before(until) {
		return false
	}
	s.log.Info("the command has ended, holding on", "key", h.Key(), "hold_at_least", t.HoldAtLeast)
	if visible {
		defer keepShowing(ctx, s.status, func() string {
			return fmt.Sprintf("%s has ended, holding %s for another %s", printable(label(t.command[0])), printable(h.Key()), age(time.Now(), until))
		}, func(context.Context) {})()
	}
	enough := make(chan struct{})
	defer listen(sigs, func(sig os.Signal) bool {
		end := slices.Contains(endings, sig)
		if end {
			close(enough)
		}
		return end
	})()
	select {
	case <-time.After(time.Until(until)):
	case <-enough:
	case <-h.Lost():
		s.log.Warn("lost after the command has ended, and before it was held long enough: others can have it", "key", h.Key(), "hold_at_least", t.HoldAtLeast)
	}
	return true
}
