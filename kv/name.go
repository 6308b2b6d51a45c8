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
	// MaxNameLen is the maximum length of a name, in bytes of UTF-8. Its key is at most three times as long.
	MaxNameLen = 512

	// MaxNameDepth is the maximum number of levels of a name. A name has one level more than slashes.
	MaxNameDepth = 32

	// emptyLevel is the token of a level without characters ("a//b"). It cannot be confused with an escape, which
	// always has two hex digits.
	emptyLevel = "="

	hexDigits = "0123456789ABCDEF"
)

// ErrInvalidName is true of every *NameError, with errors.Is: for a name that cannot be used, or a key that is not the key
// of a name. The Reason of the *NameError tells why.
var ErrInvalidName = errors.New("kv: invalid name")

// NameError tells which name was refused and why. With DecodeKey, Name is the refused key.
type NameError struct {
	Name   string
	Reason string // what is wrong and what to do about it
}

// Error quotes the name, shortened if it is long, and gives the reason.
func (e *NameError) Error() string {
	const most = 64
	name, more := e.Name, ""
	if len(name) > most {
		name, more = name[:most], "..."
	}
	return fmt.Sprintf("%v %q%s: %s", ErrInvalidName, name, more, e.Reason)
}

func (e *NameError) Unwrap() error { return ErrInvalidName }

// EncodeName returns the KV key of a resource name. '/' separates the levels of a name, and each level becomes a
// subject token: "photos/2026/a" becomes the key "photos.2026.a", and the filter "photos.2026.>" follows a subtree.
// ASCII letters and digits, '-' and '_' stay as they are. Every other byte becomes '=XX' in upper-case hex. A level
// without characters becomes the token "=". Different names have different keys; DecodeKey reverses the encoding.
//
// The error is a *NameError: the name is empty, longer than MaxNameLen, has more than MaxNameDepth levels, is not
// UTF-8, or has control characters.
func EncodeName(name string) (key string, err error) {
	if name == "" {
		return "", &NameError{name, "it is empty: give the resource a name"}
	}
	if reason := refusal(name); reason != "" {
		return "", &NameError{name, reason}
	}
	return encodeLevels(name), nil
}

// DecodeKey returns the name of a key. It accepts exactly the keys that EncodeName returns. Every other key is a
// *NameError, even if it looks like a key (lower-case hex, an escaped letter). So two keys never have the same name.
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

// EncodePrefix returns the narrowest KV filter that matches the keys of all names that start with prefix, for example
// "a.b.>", or ">" for everything. A filter can only contain complete levels, which are followed by '/'. For example,
// the names "a/b", "a/bc" and "a/b/c" all start with "a/b", and only "a.>" matches the three. The filter can match
// other names as well, so the caller must still compare the decoded names with strings.HasPrefix.
//
// The error is a *NameError: no valid name starts with this prefix.
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

// refusal returns why a name must not contain s, or "" if it may.
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

// encodeLevels encodes s, in which every slash separates levels. It allocates only if s is not its own key, with room
// for a few escapes.
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

// decodeLevels reverses encodeLevels. It refuses every key that encodeLevels does not return.
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

// decodeLevel appends the decoded token and reports whether encodeLevels could have returned the token.
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
			return false // this character is never escaped, so the key would be a second key of one name
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

// literal reports whether a byte stays as it is in a key.
func literal(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}

// Schema is the version of the buckets' layout that this library writes.
const Schema = 1

// Requirements on the servers.
const (
	// MinServer is the oldest nats-server version that has what safe locking needs.
	MinServer = "2.12.0"

	// MinPayload is the smallest allowed max_payload, in bytes. It has room for a few holds with maximum metadata.
	MinPayload = 16 << 10
)

// MetaKey is the key of the fabric's own note in the leases bucket. No lease has this id.
const MetaKey = "_fabric"

// CoalescerKey is the key, in the locks bucket, of the lock that the fabric's coalescer holds. With shards, each shard
// has the key CoalescerPrefix plus its number. No lock name encodes to such a key.
const (
	CoalescerKey    = CoalescerPrefix + "0"
	CoalescerPrefix = "=coalescer."
)

// CoalescerOf returns the coalescer key of a shard.
func CoalescerOf(shard int) string { return CoalescerPrefix + strconv.Itoa(shard) }

// LocksBucket returns the name of the bucket with the records of a fabric with one shard.
func LocksBucket(fabric string) string { return fabric + "-locks" }

// MaxShards is the maximum number of shards of a fabric.
const MaxShards = 64

// ValidShards reports whether a fabric can have n shards: 1 to MaxShards.
func ValidShards(n int) bool { return n >= 1 && n <= MaxShards }

// LocksBuckets returns the names of the buckets with the records of a fabric with so many shards, one for each shard.
// See [Shard].
func LocksBuckets(fabric string, shards int) (names []string) {
	if shards <= 1 {
		return []string{LocksBucket(fabric)}
	}
	for s := range shards {
		names = append(names, LocksBucket(fabric)+"-"+strconv.Itoa(s))
	}
	return names
}

// Shard returns the shard of a lock's key, among so many shards: the 32-bit FNV-1a hash of the key's first level,
// modulo the number of shards. So a path and all its ancestors are in one shard.
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

// LeasesBucket returns the name of the bucket with a fabric's leases.
func LeasesBucket(fabric string) string { return fabric + "-leases" }

// WaitsBucket returns the name of the bucket in which units of work that wait for a long time publish what they hold.
// Without this bucket, deadlocks are not detected.
func WaitsBucket(fabric string) string { return fabric + "-waits" }
