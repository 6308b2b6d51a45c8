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
	Op      record.Op // not one that is Proven
	AtLeast uint64    // as in Request

	Outcome Outcome // set by DoAll
	Err     error   // as that of Do

	answered bool
}

// DoAll has d carry out operations on different keys at once, each as Do does, and returns when
// all have ended. d sends them in the order of calls, see Engine.SubmitInOrder. Of opt it uses FailFast,
// Stop and Bound, for all calls together.
func DoAll(ctx context.Context, d Doer, calls []*Call, opt Options) {
	if len(calls) == 0 {
		return
	}
	ended := ctx.Done()
	var timeout <-chan time.Time
	if opt.Bound > 0 {
		t := time.NewTimer(opt.Bound)
		defer t.Stop()
		ended, timeout = nil, t.C
	}
	a := &answers{left: len(calls), all: make(chan struct{})}
	reqs := make([]*Request, len(calls))
	for i, c := range calls {
		reqs[i] = &Request{Key: c.Key, Op: c.Op, AtLeast: c.AtLeast, FailFast: opt.FailFast, Done: a.doneFunc(c)}
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
	case <-timeout:
		cause = context.DeadlineExceeded
	case <-opt.Stop:
		cause = ErrStopped
	}
	for _, r := range reqs {
		d.Withdraw(r, cause)
	}
	t := time.NewTimer(cleanupTime)
	defer t.Stop()
	select {
	case <-a.all:
	case <-t.C:
		a.abandon(calls, cause)
	}
}

// answers collects the outcomes of calls that were submitted together.
type answers struct {
	mu        sync.Mutex
	left      int
	abandoned bool          // the caller waits no more
	all       chan struct{} // closed when left is 0
}

func (a *answers) doneFunc(c *Call) func(Outcome, error) {
	return func(out Outcome, err error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.abandoned {
			return
		}
		c.Outcome, c.Err, c.answered = out, err, true
		if a.left--; a.left == 0 {
			close(a.all)
		}
	}
}

// abandon sets cause as the error of every unanswered call.
func (a *answers) abandon(calls []*Call, cause error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.abandoned = true
	for _, c := range calls {
		if !c.answered {
			c.Err = cause
		}
	}
}

// SubmitInOrder is Submit for different keys, of requests that don't queue. It sends the requests in this order,
// without waiting for answers, as far as nothing is under way for their keys. So in one stream
// they are committed in this order, unless one of them has to be sent again. Where it is faster, they go as
// one atomic batch instead. No guarantee depends on the batch: each request is answered, and sent again, by itself.
// A key for which something is under way delays none of the others.
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
		case w.running || w.retrySet || len(w.pending) > 0 || r.queues():
		case batch != nil:
			m := batch.Add()
			r.markSent, r.wrapCtx = m.Leave, m.In
		default:
			sent := make(chan struct{})
			r.sendAfter, r.markSent = before, sync.OnceFunc(func() { close(sent) })
			r.wrapCtx = func(ctx context.Context) context.Context { return outgoing{jskv.Alone(ctx), r.markSent} }
			before = sent
		}
		w.accept(r)
		w.mu.Unlock()
	}
}

// outgoing is the context of a request; sent is called when the request is on its way. It relies on the
// NATS client, which calls Done for the first time after it has sent the request.
type outgoing struct {
	context.Context
	sent func()
}

func (o outgoing) Done() <-chan struct{} {
	o.sent()
	return o.Context.Done()
}

// Foresee returns the verdict on op by the newest state that is known of the key, without a
// request: Applied if no state is known. The verdict may be wrong.
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
