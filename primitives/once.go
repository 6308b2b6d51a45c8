package primitives

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// Once has one process do something, and all others read what it came to. It is safe for concurrent use.
//
// The result stays until [Once.Forget], or for the time of [Once.WithRetention]. A process keeps no copy: each Do of
// what is done reads the record once. What ended with an error, or with the death of its process, is done
// again by the next one who asks: fn can run more than once, but never by two whose lease is valid at the same
// time, and only one result is stored. For side effects fn gets a fencing token.
type Once struct {
	m         *fabric.Manager
	name      string
	retention time.Duration
	opts      []fabric.AcquireOption
}

// NewOnce returns what is done once under this name. The options are those of each Do.
func NewOnce(m *fabric.Manager, name string, opts ...fabric.AcquireOption) *Once {
	return &Once{m: m, name: name, opts: slices.Clone(opts)}
}

// WithRetention returns the same Once, whose results stay for d at least, rounded up to whole seconds, after they were stored; 0, as
// without it, is until [Once.Forget]. It counts for those that are stored by this Once, by the server's clock. They go with a sweep of the fabric
// (see [fabric.WithSweepInterval]), or with [fabric.Manager.Collect]: up to then they are read, and afterwards the next Do
// runs again, also one that has waited for this result without a connection for so long. Less than a second, or more than 68 years, is
// [fabric.ErrInvalidOption] of Do.
func (o *Once) WithRetention(d time.Duration) *Once {
	c := *o
	c.retention = d
	return &c
}

// Do returns the result, and has fn give it if there is none: it waits while another process runs, and calls fn
// when it is its turn. The context of fn ends with ctx, and when the lease is lost. A result is at most
// 64 KiB, and a quarter of a record's bytes as it is stored; a larger one is [fabric.ErrTooLarge], and not kept.
//
// Errors: fn's, after which nothing is kept, joined with ErrLost if the lease was lost before it returned; [fabric.ErrLost] when the lease was lost before the result was stored: fn
// ran, and another may run; [fabric.ErrUncertain] when it is not known whether it was stored; and those of [fabric.Manager.Acquire].
func (o *Once) Do(ctx context.Context, fn func(ctx context.Context, token uint64) ([]byte, error)) ([]byte, error) {
	if d := o.retention; d != 0 && (d < time.Second || d > math.MaxInt32*time.Second) {
		return nil, fmt.Errorf("%w: retention %v: use a second to 68 years, or 0 for none", fabric.ErrInvalidOption, d)
	}
	for {
		info, err := o.m.Read(ctx, o.name)
		if err != nil {
			return nil, err
		}
		if info.Kind == fabric.KindOnce && info.By != "" {
			return info.Bytes(), nil
		}
		h, err := o.m.Claim(ctx, o.name, fabric.Claim{Kind: fabric.KindOnce, Life: info.Life}, o.opts...)
		var finished *fabric.FinishedError
		switch {
		case err == nil:
			return o.run(ctx, h, info.Life, fn)
		case errors.As(err, &finished):
			return finished.Result, nil
		case !errors.Is(err, fabric.ErrDeleted):
			return nil, err
		}
		// The result was forgotten, or who ran before has failed: read again.
	}
}

func (o *Once) run(ctx context.Context, h *fabric.Hold, life uint64, fn func(ctx context.Context, token uint64) ([]byte, error)) ([]byte, error) {
	defer func() { _ = h.Release(ctx) }() // where there is no result, also of a panic: the next one runs
	fctx, done := h.Within(ctx)
	defer done()
	result, err := fn(fctx, h.Token())
	if err != nil {
		if lost := h.Err(); lost != nil {
			err = errors.Join(err, lost)
		}
		return nil, err
	}
	pctx, stop := confirming(ctx)
	defer stop()
	stays := int((o.retention + time.Second - 1) / time.Second)
	if _, err = h.Post(pctx, fabric.Post{Kind: fabric.KindOnce, Verb: "finish", Life: life, Value: result, N: stays, Ends: true}); err != nil {
		return nil, err
	}
	return result, nil
}

// Result returns the result; done is false if there is none. It is one read.
func (o *Once) Result(ctx context.Context) (result []byte, done bool, err error) {
	info, err := read(ctx, o.m, o.name, fabric.KindOnce)
	if err != nil || info.Kind == "" {
		return nil, false, err
	}
	return info.Bytes(), info.By != "", nil
}

// Forget removes the result, so that the next Do runs again. While somebody runs it is [fabric.ErrHeld]. Without a
// result it is nil.
func (o *Once) Forget(ctx context.Context) error { return remove(ctx, o.m, o.name, fabric.KindOnce) }
