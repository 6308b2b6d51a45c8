package primitives

import (
	"context"
	"errors"
	"fmt"
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

// based makes a change that is based on the state of the record, until it is made or no longer needed.
func based(ctx context.Context, m *fabric.Manager, name string, change func(info fabric.Info) (p fabric.Post, needed bool)) error {
	for {
		info, err := m.Read(ctx, name)
		if err != nil {
			return err
		}
		p, needed := change(info)
		if !needed {
			return nil
		}
		_, err = m.Post(ctx, name, p)
		again := errors.Is(err, fabric.ErrStale) || errors.Is(err, fabric.ErrDeleted)
		if !again || errors.Is(err, fabric.ErrUncertain) {
			return err
		}
	}
}

// remove deletes a record that nobody uses.
func remove(ctx context.Context, m *fabric.Manager, name, kind string) error {
	for {
		info, err := m.Read(ctx, name)
		if err != nil || info.Kind == "" {
			return err
		}
		_, err = m.Post(ctx, name, fabric.Post{Kind: kind, Verb: "delete", Life: info.Life})
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

// read reads the record of the name. It must be absent or of this kind.
func read(ctx context.Context, m *fabric.Manager, name string, kind string) (fabric.Info, error) {
	info, err := m.Read(ctx, name)
	if err == nil {
		err = rightKind(name, &info, kind)
	}
	return info, err
}

func rightKind(name string, info *fabric.Info, kind string) error {
	if info.Kind == "" || info.Kind == kind {
		return nil
	}
	return fmt.Errorf("%w: %q is of kind %s, not %s", fabric.ErrKindMismatch, name, info.Kind, kind)
}
