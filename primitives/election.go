package primitives

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// ErrNoLeader is returned by Election.Leader if there is no leader at the moment.
var ErrNoLeader = errors.New("primitives: nobody leads")

// Election makes one of its candidates the leader, in the order of their campaigns. A leader has a term: the fencing
// token of its hold. It leads until it resigns or its lease is lost, which it learns by its own clock, before the next
// candidate becomes leader. An Election is safe for concurrent use.
type Election struct{ resource }

// NewElection returns the election with this name. The options apply to each campaign.
func NewElection(m *fabric.Manager, name string, opts ...fabric.AcquireOption) *Election {
	return &Election{newResource(m, name, fabric.KindLock, opts)}
}

// Leader describes a leader or a candidate. The zero Leader means that there is none.
type Leader struct {
	Term     uint64 // 0 = no leader
	ID       string // id of the hold
	Owner    string // explicit owner, or the id
	Value    []byte // the value that it proclaimed last, or campaigned with
	Since    time.Time
	Metadata map[string]string
}

// Campaign waits until this candidate leads, or until ctx ends. Others see value, of at most 1 KiB, as the value of the
// candidate and of the leader, until it proclaims another one. nil is an empty value. Errors are those of
// [fabric.Manager.Acquire], and [fabric.ErrTooLarge] for the value.
func (e *Election) Campaign(ctx context.Context, value []byte) (*Leadership, error) {
	h, err := e.claim(ctx, fabric.Claim{Mode: fabric.Exclusive, Value: notNil(value)})
	if err != nil {
		return nil, err
	}
	return &Leadership{h}, nil
}

// Leader returns the present leader, as the stream's leader has it. Errors: ErrNoLeader, and those of
// [fabric.Manager.Inspect].
func (e *Election) Leader(ctx context.Context) (Leader, error) {
	info, err := e.read(ctx)
	if err != nil {
		return Leader{}, err
	}
	l := leader(&info)
	if l.Term == 0 {
		return l, ErrNoLeader
	}
	return l, nil
}

// Candidates returns the waiting candidates in their order, with Term 0. Errors are those of [fabric.Manager.Inspect].
func (e *Election) Candidates(ctx context.Context) ([]Leader, error) {
	info, err := e.read(ctx)
	if err != nil {
		return nil, err
	}
	var out []Leader
	for i := range info.Waiters {
		out = append(out, party(&info.Waiters[i]))
	}
	return out, nil
}

// Observe returns the present leader, and then the leader after each change of the leader or its value, until ctx ends
// or the loop is left. Without a leader it returns a Leader with Term 0. If changes come faster than the loop takes
// them, terms may be skipped, but never the last one, and no term is followed by an older one. Failures and errors are as
// with [fabric.Manager.Watch]. A leader that has died is returned until another candidate campaigns, or a sweep has
// removed it.
func (e *Election) Observe(ctx context.Context) iter.Seq2[Leader, error] {
	return func(yield func(Leader, error) bool) {
		var last Leader
		newest, told := uint64(0), false
		for info, err := range e.m.Watch(ctx, e.name) {
			if err == nil {
				err = e.rightKind(&info)
			}
			if err != nil {
				yield(Leader{}, err)
				return
			}
			l := leader(&info)
			if told && l.ID == last.ID && l.Term == last.Term && bytes.Equal(l.Value, last.Value) || l.Term != 0 && l.Term < newest {
				continue // only the waiters have changed
			}
			last, newest, told = l, max(newest, l.Term), true
			if !yield(l, nil) {
				return
			}
		}
	}
}

// Run campaigns and calls fn each time it leads, until fn returns during a term, or until ctx ends. fn's context ends
// with ctx and with the term. If a term is lost, Run waits until fn has returned and then campaigns again. If fn returns
// during its term, Run resigns and returns fn's error. Other errors are those of Campaign.
func (e *Election) Run(ctx context.Context, value []byte, fn func(ctx context.Context, l *Leadership) error) error {
	if fn == nil {
		return errNilFunction
	}
	for {
		l, err := e.Campaign(ctx, value)
		if err != nil {
			return err
		}
		lost, err := l.run(ctx, fn)
		switch {
		case !lost:
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
	}
}

func leader(info *fabric.Info) Leader {
	if len(info.Holders) == 0 {
		return Leader{}
	}
	return party(&info.Holders[0])
}

func party(p *fabric.Party) Leader {
	return Leader{Term: p.Token, ID: p.ID, Owner: p.Owner, Value: p.Bytes(), Since: p.Since, Metadata: p.Metadata}
}

// notNil converts nil to an empty value.
func notNil(value []byte) []byte {
	if value == nil {
		return []byte{}
	}
	return value
}

// Leadership is one term of a leader, a single-use handle; see [fabric.Hold].
type Leadership struct{ *fabric.Hold }

// Term returns the leader's term, which is its fencing token.
func (l *Leadership) Term() uint64 { return l.Token() }

// Proclaim replaces the leader's value, of at most 64 KiB, for all observers. Of several calls, the last one wins.
// Errors: [fabric.ErrLost] and [fabric.ErrReleased] if it no longer leads (the record refuses the change even if the
// leader's clock does not show the loss); [fabric.ErrTooLarge]; [fabric.ErrUncertain]; and those of Inspect.
func (l *Leadership) Proclaim(ctx context.Context, value []byte) error {
	_, err := l.Post(ctx, fabric.Post{Kind: fabric.KindLock, Verb: "proclaim", Value: notNil(value)})
	return err
}

// Resign ends the term, and the next candidate becomes leader. It is the same as Release.
func (l *Leadership) Resign(ctx context.Context) error { return l.Release(ctx) }

// run is one term of Election.Run. lost is true if the term ended before fn did.
func (l *Leadership) run(ctx context.Context, fn func(ctx context.Context, l *Leadership) error) (lost bool, err error) {
	term, done := l.Within(ctx)
	defer done()
	defer func() {
		lost = errors.Is(l.Release(ctx), fabric.ErrLost)
	}()
	return false, fn(term, l)
}
