package primitives

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

var errNilFunction = fmt.Errorf("%w: the function to call is nil", fabric.ErrInvalidOption)

// confirmTimeout limits a change that must be made even if the caller's context has ended, like that of a release.
const confirmTimeout = 10 * time.Second

func confirming(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), confirmTimeout)
}

// maxCount is the largest number of permits and counts.
const maxCount = 1<<31 - 1

func validCounts(numbers ...int) error {
	for _, n := range numbers {
		if n < 1 || n > maxCount {
			return fmt.Errorf("%w: size or number %d: use 1 to %d", fabric.ErrInvalidOption, n, maxCount)
		}
	}
	return nil
}

// resource is what all primitives are: a name in a manager's fabric, in use as one kind.
type resource struct {
	m    *fabric.Manager
	name string
	kind string
	opts []fabric.AcquireOption // of each acquire
}

func newResource(m *fabric.Manager, name, kind string, opts []fabric.AcquireOption) resource {
	return resource{m: m, name: name, kind: kind, opts: slices.Clone(opts)}
}

func (r *resource) claim(ctx context.Context, c fabric.Claim) (*fabric.Hold, error) {
	c.Kind = r.kind
	return r.m.Claim(ctx, r.name, c, r.opts...)
}

func (r *resource) await(ctx context.Context, c fabric.Claim) (*fabric.Hold, fabric.Info, error) {
	c.Kind = r.kind
	return r.m.Await(ctx, r.name, c, r.opts...)
}

// based makes a change that is based on the state of the record, until it is made or no longer needed.
func (r *resource) based(ctx context.Context, change func(info fabric.Info) (p fabric.Post, needed bool)) error {
	for {
		info, err := r.m.Read(ctx, r.name)
		if err != nil {
			return err
		}
		p, needed := change(info)
		if !needed {
			return nil
		}
		p.Kind = r.kind
		_, err = r.m.Post(ctx, r.name, p)
		again := errors.Is(err, fabric.ErrStale) || errors.Is(err, fabric.ErrDeleted)
		if !again || errors.Is(err, fabric.ErrUncertain) {
			return err
		}
	}
}

// remove deletes a record that nobody uses.
func (r *resource) remove(ctx context.Context) error {
	for {
		info, err := r.m.Read(ctx, r.name)
		if err != nil || info.Kind == "" {
			return err
		}
		_, err = r.m.Post(ctx, r.name, fabric.Post{Kind: r.kind, Verb: "delete", Life: info.Life})
		switch {
		case errors.Is(err, fabric.ErrStale):
			// A generation of a barrier ended in the same write.
		case errors.Is(err, fabric.ErrDeleted):
			return nil
		default:
			return err
		}
	}
}

// read reads the record, which must be absent or of the kind.
func (r *resource) read(ctx context.Context) (fabric.Info, error) {
	info, err := r.m.Read(ctx, r.name)
	if err == nil {
		err = r.rightKind(&info)
	}
	return info, err
}

func (r *resource) rightKind(info *fabric.Info) error {
	if info.Kind == "" || info.Kind == r.kind {
		return nil
	}
	return fmt.Errorf("%w: %q is of kind %s, not %s", fabric.ErrKindMismatch, r.name, info.Kind, r.kind)
}
