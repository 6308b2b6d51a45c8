package primitives

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// Once runs a function in one process, and all other processes read its result. It is safe for concurrent use.
//
// The result stays until [Once.Forget], or for the time of [Once.WithRetention]. A process keeps no copy: each Do reads
// the record once. If a run ends with an error, or its process dies, the next caller runs the function again. So fn can
// run more than once, but never in two processes whose leases are valid at the same time, and only one result is stored.
// To protect side effects, fn gets a fencing token.
type Once struct {
	resource
	retention time.Duration
}

// NewOnce returns the Once with this name. The options apply to each Do.
func NewOnce(m *fabric.Manager, name string, opts ...fabric.AcquireOption) *Once {
	return &Once{resource: newResource(m, name, fabric.KindOnce, opts)}
}

// WithRetention returns the same Once, whose results stay for at least d, in whole seconds rounded up, by the server's
// clock. With 0, a result stays until [Once.Forget]. It applies to results that this Once stores. A sweep of the fabric
// (see [fabric.WithSweepInterval]) or [fabric.Manager.Collect] removes expired results. Until then they are read;
// afterwards the next Do runs the function again, also one that has waited for this result without a connection for that
// long. Less than a second, or more than 68 years, is [fabric.ErrInvalidOption] of Do.
func (o *Once) WithRetention(d time.Duration) *Once {
	c := *o
	c.retention = d
	return &c
}

// Do returns the result. If there is none, it calls fn to make it. While another process runs the function, Do waits.
// The context of fn ends with ctx, and when the lease is lost. A result is at most 64 KiB, and as stored at most a
// quarter of a record's maximum size. A larger one is [fabric.ErrTooLarge] and is not stored.
//
// Errors: fn's error, and nothing is stored; it is joined with ErrLost if the lease was lost before fn returned.
// [fabric.ErrLost] if the lease was lost before the result was stored: fn ran, and another process may run it again.
// [fabric.ErrUncertain] if it is unknown whether the result was stored. And those of [fabric.Manager.Acquire].
func (o *Once) Do(ctx context.Context, fn func(ctx context.Context, token uint64) ([]byte, error)) ([]byte, error) {
	if fn == nil {
		return nil, errNilFunction
	}
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
		h, err := o.claim(ctx, fabric.Claim{Life: info.Life})
		var finished *fabric.FinishedError
		switch {
		case err == nil:
			return o.run(ctx, h, info.Life, fn)
		case errors.As(err, &finished):
			return finished.Result, nil
		case !errors.Is(err, fabric.ErrDeleted):
			return nil, err
		}
		// The result was removed, or the previous run failed: read again.
	}
}

func (o *Once) run(ctx context.Context, h *fabric.Hold, life uint64, fn func(ctx context.Context, token uint64) ([]byte, error)) ([]byte, error) {
	defer func() { _ = h.Release(ctx) }() // without a result, also after a panic, the next caller runs
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

// Result returns the result; done is false if there is none. It makes one read.
func (o *Once) Result(ctx context.Context) (result []byte, done bool, err error) {
	info, err := o.read(ctx)
	if err != nil || info.Kind == "" {
		return nil, false, err
	}
	return info.Bytes(), info.By != "", nil
}

// Forget removes the result, so that the next Do runs the function again. While a process runs it, the error is
// [fabric.ErrHeld]. Without a result, Forget returns nil.
func (o *Once) Forget(ctx context.Context) error { return o.remove(ctx) }
