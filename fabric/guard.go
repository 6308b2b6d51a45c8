package fabric

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
)

// Guard is the receiving side of fencing, in memory. The owner of a resource calls Admit before every write to check
// the writer's token. The zero Guard is ready to use. One guard belongs to one resource and one lock name. It loses its
// state when its process ends; [Register] does not. It is safe for concurrent use.
//
// Tokens increase strictly between conflicting holds. So a guard refuses a token that is smaller than an admitted one of
// a conflicting mode. A holder that was downgraded keeps its token, so an equal token is accepted. After an upgrade only
// the new token may be used.
//
// A guard does not separate compatible modes, because their holders may come in any order. This matters for intent modes:
// two holders of IntentExclusive are admitted at the same time, even after one of them has lost its hold. An intent mode
// gives no right to write to the resource itself. Write under an Exclusive lock on the part, and guard the part.
type Guard struct {
	mu       sync.Mutex
	admitted [record.X + 1]uint64 // the largest admitted token of each mode
	use      uint64               // the largest use of the largest exclusive token
}

// Admit admits the token of a hold in the given mode. If the token is stale, it returns a *StaleTokenError
// (ErrStaleToken) and changes nothing. An unknown mode is ErrInvalidOption; the token is then not admitted.
//
// Exclusive holds of a kept lock share a token. Pass the use as well, as [Hold.Grant] returns it, so that holds that
// have ended are refused. A token without a use is never refused because of its use.
func (g *Guard) Admit(mode Mode, token uint64, use ...uint64) error {
	want, err := mode.record()
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	var highest uint64 // largest token of the conflicting modes
	for m := record.IS; m <= record.X; m++ {
		if !record.Compatible(m, want) {
			highest = max(highest, g.admitted[m])
		}
	}
	var k, last uint64
	if len(use) > 0 {
		k = use[0]
	}
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

// Seen returns the largest admitted token.
func (g *Guard) Seen() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Max(g.admitted[:])
}

// Register is a key of a KV bucket of the application, the receiving side of fencing for state in NATS. It accepts a write
// only if its fencing token is not older than the stored one. The stored value is a JSON object with the token, the id of
// the write, and the value: as "text" if it is UTF-8, otherwise as base64 in "data".
type Register struct {
	bucket jetstream.KeyValue
	key    string
}

// NewRegister returns the register at key of bucket. The bucket can have any configuration. All writers of the key must
// use registers.
func NewRegister(bucket jetstream.KeyValue, key string) *Register {
	return &Register{bucket: bucket, key: key}
}

// Fenced is the content of a register.
type Fenced struct {
	Value    []byte
	Token    uint64 // token of the last write
	Revision uint64 // revision in the bucket
}

type envelope struct {
	Version int     `json:"v"`
	Token   uint64  `json:"token,string"`
	Write   string  `json:"write"`
	Text    *string `json:"text,omitempty"`
	Data    []byte  `json:"data,omitempty"`
}

// ErrNotRegister is returned if the key's value was not written by a Register. The value was not changed.
var ErrNotRegister = errors.New("fabric: value was not written by a register")

// Read returns the content of the register, or the zero Fenced if nothing was written yet. The answer may come from a
// replica that is behind.
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

// Write stores value with the token of the writer's hold. It returns the new revision. If a write with a larger token
// came before, it writes nothing and returns a *StaleTokenError (ErrStaleToken). An unknown outcome is found out by
// reading. If this is not possible before ctx ends, the error is ErrUnavailable, and the write may have happened; another
// write with the same token does no harm. A key or value that the bucket can never store is ErrInvalidOption.
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
			if was.Revision == 0 {
				rev, err = r.bucket.Create(ctx, r.key, encoded)
			} else {
				rev, err = r.bucket.Update(ctx, r.key, encoded, was.Revision)
			}
			if err == nil {
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
