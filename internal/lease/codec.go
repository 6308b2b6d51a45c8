package lease

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// schema is the version of the value's layout.
const schema = 1

const (
	stateLive = "live"
	stateDead = "dead"
)

// Reasons in a tombstone.
const (
	ReasonClosed  = "closed"  // its holder closed it
	ReasonLost    = "lost"    // its holder has lost it
	ReasonExpired = "expired" // an observer saw no renewal for too long
)

// maxText bounds each text of a lease's value, in bytes.
const maxText = 256

// AskPrefix and a lease's id make a key in the leases bucket. Other processes write it to
// ask the lease's process to look at the locks that the value names.
const AskPrefix = "ask."

// idLen is the length of a lease id, a nuid.
const idLen = 22

// Info is the content of a lease's key, for people and for observers.
type Info struct {
	ID      string
	Dead    bool // a tombstone, not a live lease
	TTL     time.Duration
	Margin  time.Duration
	Host    string // where the holder runs
	PID     int
	Label   string    // free text by the holder
	Started time.Time // holder's wall clock, milliseconds
	Seen    []uint64  // highest lock revision that the holder had seen, in each shard

	Nonce string // live only: names the attempt that wrote this value

	Reason string    // dead only: one of the Reason constants
	By     string    // dead only: who wrote the tombstone, "host:pid"
	At     time.Time // dead only: that writer's wall clock, milliseconds
}

// wire is the stored form of Info. Durations are milliseconds, times Unix milliseconds.
type wire struct {
	Version int      `json:"v"`
	ID      string   `json:"id"`
	State   string   `json:"state"`
	Reason  string   `json:"reason,omitempty"`
	By      string   `json:"by,omitempty"`
	At      int64    `json:"at,omitempty"`
	TTL     int64    `json:"ttl"`
	Margin  int64    `json:"margin"`
	Host    string   `json:"host,omitempty"`
	PID     int      `json:"pid,omitempty"`
	Label   string   `json:"label,omitempty"`
	Started int64    `json:"started,omitempty"`
	Nonce   string   `json:"nonce,omitempty"`
	Seen    uint64   `json:"seen,omitempty"`        // of the first shard
	Others  []uint64 `json:"seen_shards,omitempty"` // and of the others
}

// encode returns the value for the bucket: one line of JSON.
func (i Info) encode() []byte {
	w := wire{
		Version: schema, ID: i.ID, State: stateLive,
		TTL: i.TTL.Milliseconds(), Margin: i.Margin.Milliseconds(),
		Host: i.Host, PID: i.PID, Label: i.Label, Nonce: i.Nonce,
	}
	if len(i.Seen) > 0 {
		w.Seen, w.Others = i.Seen[0], i.Seen[1:]
	}
	if !i.Started.IsZero() {
		w.Started = i.Started.UnixMilli()
	}
	if i.Dead {
		w.State, w.Reason, w.By, w.Nonce = stateDead, i.Reason, i.By, ""
		w.At = i.At.UnixMilli()
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false) // for people who read it
	// A struct of numbers and strings always encodes.
	_ = enc.Encode(w)
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
}

// tombstone returns a value that declares the lease dead and keeps the data of its holder.
func (i Info) tombstone(reason, by string, at time.Time) []byte {
	i.Dead, i.Reason, i.By, i.At = true, reason, by, at
	return i.encode()
}

// Decode reads the value of the lease's key strictly: a value that this version would not have written is
// ErrMalformed, or ErrNewerSchema. It never panics, whatever the value is.
func Decode(id string, value []byte) (Info, error) {
	var version struct {
		Version int `json:"v"`
	}
	if err := json.Unmarshal(value, &version); err != nil {
		return Info{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if version.Version > schema {
		return Info{}, fmt.Errorf("%w: %d, known is %d", ErrNewerSchema, version.Version, schema)
	}
	var w wire
	dec := json.NewDecoder(bytes.NewReader(value))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&w); err != nil {
		return Info{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return Info{}, fmt.Errorf("%w: more than one value", ErrMalformed)
	}
	if err := w.check(id); err != nil {
		return Info{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	i := Info{
		ID: w.ID, Dead: w.State == stateDead, TTL: millis(w.TTL), Margin: millis(w.Margin),
		Host: w.Host, PID: w.PID, Label: w.Label, Seen: append([]uint64{w.Seen}, w.Others...), Nonce: w.Nonce, Reason: w.Reason, By: w.By,
	}
	if w.Started != 0 {
		i.Started = time.UnixMilli(w.Started)
	}
	if i.Dead {
		i.At = time.UnixMilli(w.At)
	}
	return i, nil
}

func (w *wire) check(id string) error {
	live := w.State == stateLive
	switch {
	case w.Version != schema:
		return fmt.Errorf("schema version %d", w.Version)
	case w.ID != id:
		return fmt.Errorf("id %.40q under the key of %.40q", w.ID, id)
	// An observer waits as long as the value says, so a bad value must not make it wait too short or for ever.
	case w.TTL < MinTTL.Milliseconds() || w.TTL > MaxTTL.Milliseconds():
		return fmt.Errorf("ttl of %d ms", w.TTL)
	case w.Margin < 1 || w.Margin > w.TTL/4:
		return fmt.Errorf("margin of %d ms with a ttl of %d ms", w.Margin, w.TTL)
	case len(w.Host) > maxText || len(w.Label) > maxText || len(w.By) > maxText ||
		len(w.Nonce) > maxText || len(w.Reason) > maxText:
		return fmt.Errorf("text of more than %d bytes", maxText)
	case w.PID < 0:
		return fmt.Errorf("pid %d", w.PID)
	case w.State != stateLive && w.State != stateDead:
		return fmt.Errorf("state %.40q", w.State)
	case live && w.Nonce == "":
		return errors.New("live without a nonce")
	case live && (w.Reason != "" || w.By != "" || w.At != 0):
		return errors.New("live with a tombstone's fields")
	case !live && (w.Reason == "" || w.By == ""):
		return errors.New("tombstone without a reason or a writer")
	case !live && w.Nonce != "":
		return errors.New("tombstone with a nonce")
	}
	return nil
}

// ValidID reports whether id can be the id of a lease: 22 letters and digits, and optionally a hyphen and a number. Callers
// check ids from elsewhere with it before they use them as keys.
func ValidID(id string) bool {
	id, number, numbered := strings.Cut(id, "-")
	if n, err := strconv.ParseUint(number, 10, 64); numbered && (err != nil || strconv.FormatUint(n, 10) != number) {
		return false
	}
	return len(id) == idLen && strings.Trim(id, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") == ""
}

// truncate makes s valid UTF-8 of at most maxText bytes.
func truncate(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "")
	}
	return s
}

func millis(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
