package engine

import (
	"context"
	"sync"

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
}

// DoAll has d carry out operations on different keys at once, each as Do does, and returns when
// all have ended. d sends them in the order of calls, see Engine.SubmitInOrder. Of opt it uses FailFast,
// Stop and Bound, for all calls together.
func DoAll(ctx context.Context, d Doer, calls []*Call, opt Options) {
	pending := make([]call, len(calls))
	reqs := make([]*Request, len(calls))
	done := make([]<-chan struct{}, len(calls))
	for i, c := range calls {
		p := &pending[i]
		p.Request = Request{Key: c.Key, Op: c.Op, AtLeast: c.AtLeast, FailFast: opt.FailFast, Done: p.end}
		reqs[i], done[i] = &p.Request, p.waitable()
	}
	timeout := opt.timeout(0)
	if o, ok := d.(interface{ SubmitInOrder(reqs ...*Request) }); ok {
		o.SubmitInOrder(reqs...)
	} else {
		d.Submit(reqs...)
	}
	var cause error
	for i := 0; i < len(done) && cause == nil; i++ {
		cause = opt.wait(ctx, done[i], timeout, nil)
	}
	if cause != nil {
		for _, r := range reqs {
			d.Withdraw(r, cause)
		}
	}
	cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	for i, c := range calls {
		select {
		case <-done[i]:
		case <-cleanup.Done():
		}
		if p := &pending[i]; p.done.Load() == callDone {
			c.Outcome, c.Err = p.out, p.err
		} else {
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
