package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/pause"
)

// held is what is held while a command runs.
type held interface {
	Key() string
	Token() uint64
	Err() error
	Lost() <-chan struct{}
	Release(ctx context.Context) error
}

type holding struct {
	TTL        time.Duration     `default:"30s" help:"How long the hold lasts after the last renewal. Under 15s, a failover of the server can lose it."`
	KillAfter  time.Duration     `default:"10s" from:"0" give:"0 or more" help:"Time from SIGTERM to SIGKILL if it is lost while CMD runs."`
	Meta       map[string]string `placeholder:"KEY=VALUE" help:"Text that 'inspect' shows with the holder; can be repeated."`
	NoProgress bool              `help:"Don't show the holder on the terminal while waiting."`
}

// task acquires something, and runs a command while it is held.
type task struct {
	*holding
	durationFlags
	name    string   // name of the lockfabric command, for messages
	key     string   // key of the awaited name
	command []string // nothing runs if it is empty

	// acquire waits for the hold. It returns nil if nothing must be released afterwards.
	acquire func(ctx context.Context, m *fabric.Manager) (held, error)
	// advice returns what to do about an error of acquire, or "".
	advice func(error) string
	// after, if not nil, is called instead of a release when the command has ended.
	after func(ctx context.Context, h held) error
}

func (t *task) run(ctx context.Context, c *cli, s *streams) error {
	path := ""
	if len(t.command) > 0 {
		var err error
		// Before the acquire, so that nobody waits because of a spelling mistake.
		if path, err = exec.LookPath(t.command[0]); err != nil {
			return cannotRun(t.command[0], err)
		}
		inheritIgnored()
	}
	sigs := make(chan os.Signal, 64)
	catch(sigs, endings)
	defer signal.Stop(sigs)
	catch(make(chan os.Signal, 1), brokenPipe)

	m, h, err := t.obtain(ctx, c, s, sigs)
	if err != nil {
		return err
	}
	if h == nil {
		_ = m.Close()
		return nil
	}
	since := time.Now()
	v := &supervisor{held: h, sigs: sigs, killAfter: t.KillAfter, children: t.WaitChildren, log: s.log}
	code, err := v.run(childOf(path, t.command, environment(h)...))
	if err != nil && !errors.Is(err, fabric.ErrLost) {
		err = cannotRun(t.command[0], err)
	}
	stayed := err == nil && !v.told && t.waitMinimum(ctx, h, since, s, t.visible(c, s), sigs)
	err = t.end(ctx, m, h, sigs, s, err, stayed)
	switch {
	case errors.Is(err, fabric.ErrLost):
		return fmt.Errorf("%w: others may have worked while %s did: check what it wrote, or have the token checked", err, t.command[0])
	case err == nil && code != 0:
		return &exitError{code: code}
	}
	return err
}

func environment(h held) []string {
	env := []string{"LOCKFABRIC_KEY=" + h.Key(), "LOCKFABRIC_TOKEN=" + strconv.FormatUint(h.Token(), 10)}
	if s, ok := h.(*heldSet); ok {
		texts := map[string]string{} // texts, because many JSON readers handle numbers only up to 2^53
		for key, token := range s.Tokens() {
			texts[key] = strconv.FormatUint(token, 10)
		}
		tokens, _ := json.Marshal(texts)
		env = append(env, "LOCKFABRIC_TOKENS="+string(tokens))
	}
	return env
}

// outerTokens returns the names and tokens of the command in whose environment this one runs.
func outerTokens() map[string]string {
	tokens := map[string]string{}
	_ = json.Unmarshal([]byte(os.Getenv("LOCKFABRIC_TOKENS")), &tokens)
	if key := os.Getenv("LOCKFABRIC_KEY"); key != "" {
		tokens[key] = os.Getenv("LOCKFABRIC_TOKEN")
	}
	return tokens
}

// warnIfInside warns if an acquire of this manager waits, after one second, for the command in whose environment this
// one runs. It is no error, because that command need not wait for this one.
func warnIfInside(ctx context.Context, m *fabric.Manager, log *slog.Logger) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for key, token := range outerTokens() {
		isOuter := func(h fabric.Party) bool { return strconv.FormatUint(h.Token, 10) == token }
		wg.Go(func() {
			if !pause.For(ctx, progressEvery) {
				return // most waits end here, without a request
			}
			for info, err := range m.Watch(ctx, key) {
				if err != nil || !slices.ContainsFunc(info.Holders, isOuter) {
					return
				}
				if slices.ContainsFunc(info.Waiters, func(w fabric.Party) bool { return w.Own }) {
					log.Warn("waiting for the command inside which this one runs: if that command waits for this one, neither continues", "key", key)
					return
				}
				if !pause.For(ctx, progressEvery) {
					return
				}
			}
		})
	}
	return func() {
		cancel()
		wg.Wait()
	}
}

// end releases the hold, or calls after. It returns err, or else what to report. stayed: a loss was already reported.
func (t *task) end(ctx context.Context, m *fabric.Manager, h held, sigs <-chan os.Signal, s *streams, err error, stayed bool) error {
	var ended error
	if t.after == nil || h.Err() != nil {
		again, begun := make(chan struct{}), time.Now()
		defer listen(sigs, func(sig os.Signal) (enough bool) {
			if enough = slices.Contains(endings, sig) && time.Since(begun) > repeatWindow; enough {
				close(again)
			}
			return enough
		})()
		ended = callUnlessDone(again, func() error { return letGo(ctx, m, h) })
	} else {
		ctx, again, done := interruptible(ctx, sigs)
		defer done()
		ended = callUnlessDone(again, func() error {
			err := interrupted(ctx, t.after(ctx, h))
			_ = m.Close()
			return err
		})
	}
	lost := errors.Is(ended, fabric.ErrLost)
	switch {
	case err != nil || lost && stayed:
		return err
	case ended == nil || lost || t.after != nil:
		return ended
	}
	s.log.Warn("the release is not confirmed; what was held ends with its TTL at the latest", "key", t.key, "ttl", t.TTL, "error", ended)
	return nil
}

// How long a command continues after CMD has ended: releaseTime for the release, and the time of Manager.Close, four
// seconds. After a loss there is nothing to release, and the command waits at most closeTime for the end of Close.
const (
	releaseTime = 5 * time.Second
	closeTime   = 500 * time.Millisecond
)

func letGo(ctx context.Context, m *fabric.Manager, h held) error {
	late := time.AfterFunc(releaseTime, func() { _ = m.Close() }) // this also ends the release
	defer late.Stop()
	err := h.Release(ctx)
	enough := make(chan struct{})
	if errors.Is(err, fabric.ErrLost) {
		time.AfterFunc(closeTime, func() { close(enough) })
	}
	_ = callUnlessDone(enough, m.Close)
	return err
}

// obtain connects and acquires. After an error, also that of a signal, nothing is held. If error and hold are nil, there
// is nothing to release.
func (t *task) obtain(ctx context.Context, c *cli, s *streams, sigs <-chan os.Signal) (*fabric.Manager, held, error) {
	ctx, again, done := interruptible(ctx, sigs)
	defer done()
	c.once = true
	defer reaping()()
	called := t.name
	if len(t.command) > 0 {
		called = t.command[0]
	}
	m, err := c.connect(ctx, s, fabric.WithTTL(t.TTL), fabric.WithLabel(label(called)))
	if err != nil {
		return nil, nil, err
	}
	ctx, leave := c.welcome.guard(ctx)
	defer leave()
	erase := func() {}
	if t.visible(c, s) {
		erase = startProgress(ctx, m, t.key, s.status)
	}
	defer warnIfInside(ctx, m, s.log)()
	var got held
	err = callUnlessDone(again, func() error {
		h, err := t.acquire(ctx, m)
		erase()
		if err == nil {
			if done(); ctx.Err() == nil { // later signals are for the command
				got = h
				return nil
			}
			if h != nil {
				_ = h.Release(ctx)
			}
		}
		err = withHolderName(c.welcome.why(ctx, errors.Join(err, ctx.Err())), m, t.key)
		if text := t.advice(err); text != "" {
			err = fmt.Errorf("%w: %s", err, text)
		}
		_ = m.Close()
		return err
	})
	switch {
	case errors.Is(err, errGivenUp):
		return nil, nil, fmt.Errorf("%w, but no server has confirmed that: its place in the queue ends with its TTL", interrupted(ctx, err))
	case err != nil:
		return nil, nil, err
	}
	return m, got, nil
}

// visible reports whether to show progress on the terminal.
func (t *task) visible(c *cli, s *streams) bool {
	return !t.NoProgress && c.Output == "text" && s.status.usable()
}

// nameTime limits the search for the process that holds something.
const nameTime = 3 * time.Second

// withHolderName replaces the id in a refusal by the host, process and label of the holder. A lease can be read for a
// while after its end.
func withHolderName(err error, m *fabric.Manager, key string) error {
	who := ""
	held, isHeld := errors.AsType[*fabric.HeldError](err)
	broken, isBroken := errors.AsType[*fabric.BrokenError](err)
	switch {
	case isHeld:
		who = held.Owner
	case isBroken:
		who = broken.Who
	}
	ctx, cancel := context.WithTimeout(context.Background(), nameTime)
	defer cancel()
	if errors.Is(err, fabric.ErrKindMismatch) || errors.Is(err, fabric.ErrSizeMismatch) {
		return withKindUsers(ctx, err, m, key)
	}
	lease, _, _ := strings.Cut(who, ".")
	all := []fabric.Info{{Waiters: []fabric.Party{{ID: who, Owner: who, Lease: fabric.Lease{ID: lease}}}}}
	if who == "" || m.Identify(ctx, all) != nil || all[0].Waiters[0].Lease.Host == "" {
		return err
	}
	p := all[0].Waiters[0]
	if isBroken {
		p.Lease.State = "" // the error already contains the reason
	}
	return &reworded{err, strings.Replace(err.Error(), who, holder(p), 1)}
}

// withKindUsers adds who uses a name as another kind, and what to do.
func withKindUsers(ctx context.Context, err error, m *fabric.Manager, key string) error {
	info, ierr := m.Inspect(ctx, key)
	if ierr != nil {
		return err
	}
	verb, parties := "held", info.Holders
	if len(parties) == 0 {
		verb, parties = "awaited", info.Waiters
	}
	how := "nobody uses it now"
	if len(parties) > 0 {
		how = verb + " by " + holder(parties[0])
		if n := len(info.Holders) + len(info.Waiters) - 1; n > 0 {
			how += fmt.Sprintf(" and %d more", n)
		}
	}
	if len(parties) > 0 && parties[0].Lease.State == "stale" {
		return fmt.Errorf("%w: %s: it is observed and replaced when this is tried again after its TTL, %v", err, how, parties[0].Lease.TTL)
	}
	if entering(info) { // it can't be taken away
		return fmt.Errorf("%w: %s: use another name, or end this process", err, how)
	}
	return fmt.Errorf("%w: %s: use another name, or take this one away with 'lockfabric release --force %s'", err, how, printable(key))
}
