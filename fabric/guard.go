package fabric

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
)

// Guard is the receiving side of fencing, in memory: the owner of a resource asks it before every write whether the
// writer's token is still good. The zero Guard is ready; one guard belongs to one resource and one lock name. It
// forgets when its process ends; see [Register] for one that does not. It is safe for concurrent use.
//
// The rule is that of the tokens, which increase strictly between conflicting holds: a token is refused when a larger
// one was admitted in a mode that can't be held beside its own. So an exclusive token must not be below any token
// seen, and a shared or update one not below the highest exclusive one. A holder that downgraded keeps its token, so
// an equal one is good; after an upgrade only the new token may be used.
//
// Holders that may hold together are not kept apart by tokens either, since they may come in any order. That matters
// for the modes with which one writes below a resource: two holders of IntentExclusive are let in side by side, also
// when one of them has lost its hold meanwhile. Those modes allow no write to the resource itself. Write under an
// Exclusive lock on the part, and guard that part with that lock's token.
type Guard struct {
	mu       sync.Mutex
	admitted [record.X + 1]uint64 // the highest token of each mode
	use      uint64               // the highest of the highest exclusive token
}

// Admit admits the token of a hold in the given mode, or returns a *StaleTokenError (ErrStaleToken) and changes
// nothing. What is no mode is ErrInvalidOption, and not admitted either.
//
// Exclusive holds of a lock that is kept share a token: give the use as well, as [Hold.Grant] tells it, to have
// those refused that have ended. A token without it is not refused for its use.
func (g *Guard) Admit(mode Mode, token uint64, use ...uint64) error {
	want, err := mode.record()
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	var highest uint64 // of those that have replaced, or were replaced by, this one
	for m := record.IS; m <= record.X; m++ {
		if !record.Compatible(m, want) {
			highest = max(highest, g.admitted[m])
		}
	}
	k := uint64(0)
	if len(use) > 0 {
		k = use[0]
	}
	last := uint64(0)
	if want == record.X && token == g.admitted[want] {
		last = g.use
	}
	if token == 0 || token < highest || k > 0 && k < last {
		return &StaleTokenError{Token: token, Highest: highest}
	}
	g.admitted[want] = max(g.admitted[want], token)
	if want == record.X {
		g.use = max(last, k)
	}
	return nil
}

// Seen returns the highest token admitted.
func (g *Guard) Seen() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	var seen uint64
	for _, token := range g.admitted {
		seen = max(seen, token)
	}
	return seen
}

// Register is one key of a KV bucket of the user's that only accepts writes with a fencing token that is not older
// than the one stored: the receiving side of fencing for state that lives in NATS itself. A holder that was paused
// past its lease can't overwrite what its successor has written.
//
// The stored value is a JSON object with the token, the write's id and the value,
// as "text" where it is UTF-8 and as base64 "data" otherwise.
type Register struct {
	bucket jetstream.KeyValue
	key    string
}

// NewRegister returns the register at key of bucket. Any bucket will do. All
// writers of the key have to go through registers.
func NewRegister(bucket jetstream.KeyValue, key string) *Register {
	return &Register{bucket: bucket, key: key}
}

// Fenced is what a register holds.
type Fenced struct {
	Value    []byte
	Token    uint64 // of the last write
	Revision uint64 // in the user's bucket
}

type envelope struct {
	Version int     `json:"v"`
	Token   uint64  `json:"token,string"`
	Write   string  `json:"write"`
	Text    *string `json:"text,omitempty"`
	Data    []byte  `json:"data,omitempty"`
}

// ErrNotRegister says that the key's value was not written by a Register. It was left as it is.
var ErrNotRegister = errors.New("fabric: value was not written by a register")

// Read returns what the register holds; the zero Fenced if nothing was written
// yet. The bucket may answer from a replica that is behind.
func (r *Register) Read(ctx context.Context) (Fenced, error) {
	f, _, err := r.read(ctx)
	return f, err
}

func (r *Register) read(ctx context.Context) (Fenced, string, error) {
	e, err := r.bucket.Get(ctx, r.key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return Fenced{}, "", nil
	}
	if err != nil {
		kind := ErrUnavailable
		if jskv.Unwritable(err) {
			kind = ErrInvalidOption
		}
		return Fenced{}, "", fmt.Errorf("%w: register %q: %w", kind, r.key, err)
	}
	var env envelope
	if err := json.Unmarshal(e.Value(), &env); err != nil || env.Version != 2 || env.Token == 0 || env.Write == "" {
		return Fenced{}, "", fmt.Errorf("%w: key %q", ErrNotRegister, r.key)
	}
	return Fenced{Value: bytesOf(env.Text, env.Data), Token: env.Token, Revision: e.Revision()}, env.Write, nil
}

// Write stores value under the token of the writer's hold. It is a *StaleTokenError (ErrStaleToken), and nothing is
// written, if a later token has written before. An unknown outcome is resolved by reading; when that is not possible
// before ctx ends the error is ErrUnavailable and the write may have happened: writing again with the same token is
// harmless. A key or a value that the bucket never takes is ErrInvalidOption.
func (r *Register) Write(ctx context.Context, token uint64, value []byte) (uint64, error) {
	if token == 0 {
		return 0, fmt.Errorf("%w: token 0 belongs to no hold", ErrInvalidOption)
	}
	env := envelope{Version: 2, Token: token, Write: nuid.Next()}
	env.Text, env.Data = textOrData(record.Value{Set: true, Data: string(value)})
	encoded, err := json.Marshal(env)
	if err != nil {
		return 0, err
	}
	for n := 0; ; n++ {
		was, id, err := r.read(ctx)
		switch {
		case errors.Is(err, ErrNotRegister), errors.Is(err, ErrInvalidOption):
			return 0, err
		case err == nil && id == env.Write:
			return was.Revision, nil
		case err == nil && token < was.Token:
			return 0, &StaleTokenError{Token: token, Highest: was.Token}
		case err == nil:
			var rev uint64
			if rev, err = r.put(ctx, encoded, was.Revision); err == nil {
				return rev, nil
			}
		}
		if err != nil && jskv.Unwritable(err) {
			return 0, fmt.Errorf("%w: register %q: %w", ErrInvalidOption, r.key, err)
		}
		if !pause.For(ctx, pause.Around(min(time.Duration(n+1)*time.Millisecond, 100*time.Millisecond))) {
			return 0, fmt.Errorf("%w: register %q: %w (%w)", ErrUnavailable, r.key, ctx.Err(), err)
		}
	}
}

// put writes over the value of the revision, 0 for none.
func (r *Register) put(ctx context.Context, encoded []byte, rev uint64) (uint64, error) {
	if rev == 0 {
		return r.bucket.Create(ctx, r.key, encoded)
	}
	return r.bucket.Update(ctx, r.key, encoded, rev)
}
