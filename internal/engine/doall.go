package engine

import (
	"context"
	"sync"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
)

// Call is one operation of DoAll.
type Call struct {
	Key     string
	Op      record.Op // none that is Proven
	AtLeast uint64    // as in Request

	Outcome Outcome // set by DoAll
	Err     error   // as that of Do

	answered bool
}

// DoAll has d carry out operations on different keys at once, as Do does each, and returns when
// all have ended. They are sent in the order of calls, see Engine.SubmitInOrder. Of opt, FailFast,
// Stop and Bound count, for all together.
func DoAll(ctx context.Context, d Doer, calls []*Call, opt Options) {
	if len(calls) == 0 {
		return
	}
	ended := ctx.Done()
	var late <-chan time.Time
	if opt.Bound > 0 {
		t := time.NewTimer(opt.Bound)
		defer t.Stop()
		ended, late = nil, t.C
	}
	a := &answers{left: len(calls), all: make(chan struct{})}
	reqs := make([]*Request, len(calls))
	for i, c := range calls {
		reqs[i] = &Request{Key: c.Key, Op: c.Op, AtLeast: c.AtLeast, FailFast: opt.FailFast, Done: a.to(c)}
	}
	if o, ok := d.(interface{ SubmitInOrder(reqs ...*Request) }); ok {
		o.SubmitInOrder(reqs...)
	} else {
		d.Submit(reqs...)
	}
	var cause error
	select {
	case <-a.all:
		return
	case <-ended:
		cause = ctx.Err()
	case <-late:
		cause = context.DeadlineExceeded
	case <-opt.Stop:
		cause = ErrStopped
	}
	for _, r := range reqs {
		d.Withdraw(r, cause)
	}
	t := time.NewTimer(cleanup)
	defer t.Stop()
	select {
	case <-a.all:
	case <-t.C:
		a.giveUp(calls, cause)
	}
}

// answers collects the outcomes of calls that were submitted together.
type answers struct {
	mu   sync.Mutex
	left int
	over bool          // nobody waits any more
	all  chan struct{} // closed when none is left
}

func (a *answers) to(c *Call) func(Outcome, error) {
	return func(out Outcome, err error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.over {
			return
		}
		c.Outcome, c.Err, c.answered = out, err, true
		if a.left--; a.left == 0 {
			close(a.all)
		}
	}
}

// giveUp gives those that are not answered their cause.
func (a *answers) giveUp(calls []*Call, cause error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = true
	for _, c := range calls {
		if !c.answered {
			c.Err = cause
		}
	}
}

// SubmitInOrder is Submit for different keys, of requests that don't queue. Where nothing is under
// way for their keys, they are sent in this order, without waiting for answers: so in one stream they
// are committed in this order, too, unless one of them has to be sent again. Where that is faster they are
// one atomic batch instead, on which nothing rests: each is answered, and sent again, by itself. A key for
// which something is under way holds up none of the others.
func (e *Engine) SubmitInOrder(reqs ...*Request) {
	var before chan struct{}
	var batch *jskv.Batch
	if s, ok := e.cfg.Store.(interface{ NewBatch() *jskv.Batch }); ok && len(reqs) > 1 {
		batch = s.NewBatch()
	}
	if batch != nil {
		defer batch.Send()
	}
	for _, r := range reqs {
		w := e.lock(r.Key)
		switch {
		case w.running || w.resting || len(w.pending) > 0 || r.queues():
		case batch != nil:
			m := batch.Add()
			r.sent, r.in = m.Leave, m.In
		default:
			sent := make(chan struct{})
			r.after, r.sent = before, sync.OnceFunc(func() { close(sent) })
			r.in = func(ctx context.Context) context.Context { return outgoing{jskv.Alone(ctx), r.sent} }
			before = sent
		}
		w.accept(r)
		w.mu.Unlock()
	}
}

// outgoing is the context of a request whose sending somebody waits for. The client looks for the
// first time when it ends once the request is on its way.
type outgoing struct {
	context.Context
	sent func()
}

func (o outgoing) Done() <-chan struct{} {
	o.sent()
	return o.Context.Done()
}

// Foresee returns what the newest state that is known of the key makes of op, without asking
// anybody: Applied where nothing is known, and perhaps wrong.
func (e *Engine) Foresee(key string, op record.Op) record.Verdict {
	w := e.find(key)
	if w == nil {
		return record.Applied
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.trusted() {
		return record.Applied
	}
	_, results, _ := record.Apply(w.rec, w.rev, []record.Op{op}, e.limits())
	return results[0].Verdict
}
