package primitives

import (
	"context"
	"errors"
	"slices"

	"github.com/lockfabric/lockfabric/fabric"
)

// DoubleBarrier has a number of parties go in together and come out together: Enter returns when all are there, and
// Leave when all have left. It is safe for concurrent use, and one value serves any number of parties.
//
// One that dies or gives up while it enters leaves its place to another; one that dies
// inside counts as having left. Who comes while the others are inside waits for the next time.
type DoubleBarrier struct {
	m       *fabric.Manager
	name    string
	parties int
	opts    []fabric.AcquireOption
}

// NewDoubleBarrier returns the double barrier with this name, for 1 to MaxParties parties. Those who use it at a time have to
// agree on their number: a name that nobody uses has none. The options are those of each Enter.
func NewDoubleBarrier(m *fabric.Manager, name string, parties int, opts ...fabric.AcquireOption) *DoubleBarrier {
	return &DoubleBarrier{m: m, name: name, parties: parties, opts: slices.Clone(opts)}
}

// Enter waits until all parties are there, and returns the membership. If ctx ends at the
// moment at which the last one comes, Enter may succeed: the others have gone in together with it.
//
// Every error means that nothing was entered, but [fabric.ErrUncertain], which says that no server
// could be asked in time. Others: [fabric.ErrSizeMismatch], and those of [fabric.Manager.Acquire].
func (d *DoubleBarrier) Enter(ctx context.Context) (*Member, error) {
	if err := validParties(d.parties); err != nil {
		return nil, err
	}
	for {
		info, err := d.m.Read(ctx, d.name)
		if err != nil {
			return nil, err
		}
		claim := fabric.Claim{Kind: fabric.KindGate, Verb: "enter", Limit: d.parties, Gen: info.Generation, Life: info.Life}
		h, err := d.m.Claim(ctx, d.name, claim, d.opts...)
		switch {
		case err == nil:
			return &Member{h}, nil
		case errors.Is(err, fabric.ErrStale), errors.Is(err, fabric.ErrDeleted):
			// Others came or went since, and it is not there: ask again.
		default:
			return nil, err
		}
	}
}

// State tells who is there, and whether they are inside. It is one read.
func (d *DoubleBarrier) State(ctx context.Context) (fabric.Info, error) { return d.m.Read(ctx, d.name) }

// Member is a membership: a single-use handle, see [fabric.Hold]. All members of one time have the same token, larger than
// those of the times before. Release leaves without waiting for the others.
type Member struct{ *fabric.Hold }

// Leave ends the membership and waits until all members have left or are gone. The handle is invalid before
// it is sent, and it leaves also when ctx has ended or ends meanwhile: then Leave doesn't wait
// for the others, and returns ctx's error. Other errors: [fabric.ErrLost] when the membership was lost before, and
// those of [fabric.Hold.Release].
func (m *Member) Leave(ctx context.Context) error {
	if ctx.Err() != nil {
		if err := m.Release(ctx); err != nil {
			return err
		}
		return ctx.Err()
	}
	_, err := m.Post(ctx, fabric.Post{Kind: fabric.KindGate, Verb: "leave", Ends: true})
	return err
}
