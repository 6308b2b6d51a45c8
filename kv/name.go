package kv

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// MaxNameLen is the longest name EncodeName accepts, in bytes of UTF-8. Its key is at most three times as long.
	MaxNameLen = 512

	// MaxNameDepth is the largest number of levels of a name. A name has one level more than it has slashes.
	MaxNameDepth = 32

	// emptyLevel is the token of a level without characters ("a//b"). It can't
	// be mistaken for an escape, which always has two hex digits.
	emptyLevel = "="

	hexDigits = "0123456789ABCDEF"
)

// ErrInvalidName is what every *NameError is, for errors.Is. It occurs when a name can't be used as the name of a
// resource, or a key is not the key of any name; choose another name, as the Reason of the *NameError tells.
var ErrInvalidName = errors.New("kv: invalid name")

// NameError says which name was refused and why. From DecodeKey, Name is the key that was refused.
type NameError struct {
	Name   string
	Reason string // what is wrong and what to do about it
}

// Error quotes the name, shortened when it is long, and gives the reason.
func (e *NameError) Error() string {
	const most = 64
	name, more := e.Name, ""
	if len(name) > most {
		name, more = name[:most], "..."
	}
	return fmt.Sprintf("%v %q%s: %s", ErrInvalidName, name, more, e.Reason)
}

func (e *NameError) Unwrap() error { return ErrInvalidName }

// EncodeName returns the KV key of a resource name. Levels, which '/' separates in a name, become subject tokens, so
// that "photos/2026/a" is the key "photos.2026.a" and the filter "photos.2026.>" follows a subtree. Letters and
// digits of ASCII, '-' and '_' stand for themselves, every other byte is written '=XX' in upper-case hex, and a level
// without characters is the token "=". Different names have different keys; DecodeKey reverses it.
//
// The error is a *NameError: the name is empty, longer than MaxNameLen, deeper
// than MaxNameDepth, not UTF-8, or has control characters.
func EncodeName(name string) (key string, err error) {
	if name == "" {
		return "", &NameError{name, "it is empty: give the resource a name"}
	}
	if reason := refusal(name); reason != "" {
		return "", &NameError{name, reason}
	}
	return encodeLevels(name), nil
}

// DecodeKey returns the name whose key this is. It accepts exactly the keys that EncodeName makes; every other key,
// also one that merely looks like a key (lower-case hex, an escaped letter), is a *NameError, so that no two keys
// ever claim the same name.
func DecodeKey(key string) (name string, err error) {
	if plain(key) {
		name = key
	} else if name, err = decodeLevels(key); err != nil {
		return "", err
	}
	if name == "" {
		return "", &NameError{key, "it is the key of no name: pass a key made by EncodeName"}
	}
	if reason := refusal(name); reason != "" {
		return "", &NameError{key, "the name it stands for is not valid (" + reason + "): pass a key made by EncodeName"}
	}
	return name, nil
}

// EncodePrefix returns the narrowest KV filter that covers the keys of all names beginning with prefix: "a.b.>" or,
// for everything, ">". Only complete levels, those followed by '/', can be part of a filter: the names "a/b", "a/bc"
// and "a/b/c" all begin with "a/b", and only "a.>" covers the three. The filter therefore lets other names through,
// and the caller still compares with strings.HasPrefix on the decoded names.
//
// The error is a *NameError: no valid name begins with this prefix.
func EncodePrefix(prefix string) (filter string, err error) {
	if reason := refusal(prefix); reason != "" {
		return "", &NameError{prefix, reason}
	}
	end := strings.LastIndexByte(prefix, '/')
	if end < 0 {
		return ">", nil
	}
	return encodeLevels(prefix[:end]) + ".>", nil
}

// refusal returns why no name may contain s, or "" if one may.
func refusal(s string) string {
	if len(s) > MaxNameLen {
		return fmt.Sprintf("%d bytes are more than %d: shorten it", len(s), MaxNameLen)
	}
	if depth := strings.Count(s, "/") + 1; depth > MaxNameDepth {
		return fmt.Sprintf("%d levels are more than %d: use fewer slashes", depth, MaxNameDepth)
	}
	for i, r := range s {
		if r == utf8.RuneError {
			if _, size := utf8.DecodeRuneInString(s[i:]); size == 1 {
				return fmt.Sprintf("byte %d is not UTF-8: encode binary names first, for example as hex", i)
			}
		}
		if unicode.IsControl(r) {
			return fmt.Sprintf("byte %d is the control character %U: leave it out", i, r)
		}
	}
	return ""
}

// encodeLevels encodes s, all of whose slashes separate levels. It allocates
// its result, with room for what is rarely needed, and nothing when s is its own key.
func encodeLevels(s string) string {
	if s != "" && plain(s) {
		return s
	}
	var b strings.Builder
	b.Grow(len(s) + 16)
	for level := range strings.SplitSeq(s, "/") {
		if level == "" {
			b.WriteString(emptyLevel)
		}
		for i := range len(level) {
			if c := level[i]; literal(c) {
				b.WriteByte(c)
			} else {
				b.Write([]byte{'=', hexDigits[c>>4], hexDigits[c&15]})
			}
		}
		b.WriteByte('.')
	}
	return b.String()[:b.Len()-1]
}

// decodeLevels reverses encodeLevels and refuses what that does not write.
func decodeLevels(key string) (string, error) {
	var b strings.Builder
	b.Grow(len(key) + 1)
	for level := range strings.SplitSeq(key, ".") {
		if level == "" {
			return "", &NameError{key, "it has an empty token: pass a key made by EncodeName"}
		}
		if level != emptyLevel && !decodeLevel(&b, level) {
			return "", &NameError{key, fmt.Sprintf("the token %q is not canonical: pass a key made by EncodeName", level)}
		}
		b.WriteByte('/')
	}
	return b.String()[:b.Len()-1], nil
}

// decodeLevel appends what one token stands for and reports whether the token is one that encodeLevels writes.
func decodeLevel(b *strings.Builder, level string) bool {
	for i := 0; i < len(level); i++ {
		c := level[i]
		if literal(c) {
			b.WriteByte(c)
			continue
		}
		if c != '=' || i+2 >= len(level) {
			return false
		}
		high := strings.IndexByte(hexDigits, level[i+1])
		low := strings.IndexByte(hexDigits, level[i+2])
		if high < 0 || low < 0 {
			return false
		}
		c = byte(high<<4 | low)
		if literal(c) || c == '/' {
			return false // never escaped, so this would be a second key of one name
		}
		b.WriteByte(c)
		i += 2
	}
	return true
}

// plain reports whether s is its own key.
func plain(s string) bool {
	for i := range len(s) {
		if !literal(s[i]) {
			return false
		}
	}
	return true
}

// literal reports whether a byte stands for itself in a key.
func literal(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}

// Schema is the version of the buckets' layout that this version writes.
const Schema = 1

// What the servers have to be like.
const (
	// MinServer is the oldest nats-server that has what safe locking needs.
	MinServer = "2.12.0"

	// MinPayload is the least max_payload, in bytes: it has room for a few holds with all
	// that they may say of themselves.
	MinPayload = 16 << 10
)

// MetaKey is the key in the leases bucket under which the fabric's own note is kept. No lease has this name.
const MetaKey = "_fabric"

// CoalescerKey is the key in the locks bucket of the lock that the fabric's coalescer holds, and CoalescerPrefix, with
// the number of the shard behind it, that of each shard. No name of a lock encodes to it.
const (
	CoalescerKey    = CoalescerPrefix + "0"
	CoalescerPrefix = "=coalescer."
)

// CoalescerOf returns that key of a shard.
func CoalescerOf(shard int) string { return CoalescerPrefix + strconv.Itoa(shard) }

// LocksBucket returns the name of the bucket that a fabric of one shard keeps its records in.
func LocksBucket(fabric string) string { return fabric + "-locks" }

// MaxShards is the largest number of shards of a fabric.
const MaxShards = 64

// LocksBuckets returns the names of the buckets that a fabric of so many shards keeps its records in: one for each
// shard. See [Shard].
func LocksBuckets(fabric string, shards int) (names []string) {
	if shards <= 1 {
		return []string{LocksBucket(fabric)}
	}
	for s := range shards {
		names = append(names, LocksBucket(fabric)+"-"+strconv.Itoa(s))
	}
	return names
}

// Shard returns the shard of a lock's key among so many: the 32-bit FNV-1a hash of the key's first level, modulo
// their number. So a path stays in one shard with all its ancestors.
func Shard(key string, shards int) int {
	if shards <= 1 {
		return 0
	}
	h := uint32(2166136261)
	for i := 0; i < len(key) && key[i] != '.'; i++ {
		h = (h ^ uint32(key[i])) * 16777619
	}
	return int(h % uint32(shards))
}

// LeasesBucket returns the name of the bucket that a fabric keeps its leases in.
func LeasesBucket(fabric string) string { return fabric + "-leases" }

// WaitsBucket returns the name of the bucket in which a fabric's units of work say what they hold while
// they wait for long. Where it is missing, deadlocks are not detected.
func WaitsBucket(fabric string) string { return fabric + "-waits" }
