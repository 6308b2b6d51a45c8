package kv_test

import (
	"errors"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/lockfabric/lockfabric/kv"
)

// validKey is what every KV client accepts as a key.
var validKey = regexp.MustCompile(`^[-/_=.a-zA-Z0-9]+$`)

func TestEncodeName(t *testing.T) {
	for name, want := range map[string]string{
		"resource-key":   "resource-key",
		"shared_1":       "shared_1",
		"photos/2026/a":  "photos.2026.a",
		"a.b":            "a=2Eb",
		"a=b":            "a=3Db",
		"=":              "=3D",
		"/":              "=.=",
		"a//b":           "a.=.b",
		"/a":             "=.a",
		"a/":             "a.=",
		"//":             "=.=.=",
		"*":              "=2A",
		">":              "=3E",
		"a b":            "a=20b",
		"größe":          "gr=C3=B6=C3=9Fe",
		"\ufffd":         "=EF=BF=BD", // valid UTF-8, unlike the byte it often replaces
		"db/users:42/é/": "db.users=3A42.=C3=A9.=",
	} {
		got, err := kv.EncodeName(name)
		if err != nil || got != want {
			t.Errorf("EncodeName(%q) = %q, %v, want %q", name, got, err, want)
		}
		back, err := kv.DecodeKey(want)
		if err != nil || back != name {
			t.Errorf("DecodeKey(%q) = %q, %v, want %q", want, back, err, name)
		}
	}
}

func TestEncodeNameLimits(t *testing.T) {
	for _, name := range []string{
		strings.Repeat("x", kv.MaxNameLen),
		strings.Repeat("é", kv.MaxNameLen/2),
		strings.Repeat("a/", kv.MaxNameDepth-1) + "a",
		strings.Repeat("/", kv.MaxNameDepth-1),
	} {
		key, err := kv.EncodeName(name)
		if err != nil {
			t.Errorf("EncodeName refused a name at the limit: %v", err)
			continue
		}
		if back, err := kv.DecodeKey(key); err != nil || back != name {
			t.Errorf("DecodeKey(%q) = %q, %v", key, back, err)
		}
	}
}

func TestEncodeNameRefusals(t *testing.T) {
	for name, remedy := range map[string]string{
		"":                                      "give the resource a name",
		strings.Repeat("x", kv.MaxNameLen+1):    "shorten it",
		strings.Repeat("é", kv.MaxNameLen/2+1):  "shorten it",
		strings.Repeat("/", kv.MaxNameDepth):    "use fewer slashes",
		strings.Repeat("a/", kv.MaxNameDepth):   "use fewer slashes",
		"a\xff":                                 "encode binary names",
		"\xc3":                                  "encode binary names",
		"\xed\xa0\x80":                          "encode binary names", // a surrogate
		"a\nb":                                  "leave it out",
		"\x00":                                  "leave it out",
		"tab\there":                             "leave it out",
		"\u0085":                                "leave it out",
		strings.Repeat("long name ", 20) + "\r": "leave it out",
	} {
		key, err := kv.EncodeName(name)
		var refused *kv.NameError
		if !errors.Is(err, kv.ErrInvalidName) || !errors.As(err, &refused) {
			t.Errorf("EncodeName(%q) = %q, %v, want a *NameError", name, key, err)
			continue
		}
		if refused.Name != name || !strings.Contains(refused.Reason, remedy) || !strings.Contains(err.Error(), refused.Reason) {
			t.Errorf("EncodeName(%q): message %q does not say %q", name, err, remedy)
		}
		if len(err.Error()) > 400 {
			t.Errorf("EncodeName(%q): message has %d bytes", name, len(err.Error()))
		}
	}
}

// A key that EncodeName does not write must not decode: two keys would then
// stand for one resource, and two holders could both be right.
func TestDecodeKeyAcceptsCanonicalKeysOnly(t *testing.T) {
	for _, key := range []string{
		"", ".", "a.", ".a", "a..b", // empty tokens
		"=", // the level of an empty name
		"=2", "a=", "a=2", "==", "=.==", "=G0", "= 1",
		"=2e", "gr=c3=b6", // lower-case hex
		"=41", "a=2D", "=5F", "=30", // escaped literals
		"=2F",                    // a slash is never escaped
		"a/b", "a b", "ü", "a\n", // not escaped at all
		"=FF", "=C3", // not UTF-8
		"=0A", "=00", "=C2=85", // control characters
		strings.Repeat("x", kv.MaxNameLen+1),
		strings.Repeat("=C3=A9", kv.MaxNameLen/2+1),
		strings.Repeat("a.", kv.MaxNameDepth) + "a",
	} {
		name, err := kv.DecodeKey(key)
		var refused *kv.NameError
		if !errors.Is(err, kv.ErrInvalidName) || !errors.As(err, &refused) || refused.Name != key {
			t.Errorf("DecodeKey(%q) = %q, %v, want a *NameError", key, name, err)
		}
	}
}

func TestEncodePrefix(t *testing.T) {
	for prefix, want := range map[string]string{
		"":        ">",
		"a":       ">",
		"a/":      "a.>",
		"a/b":     "a.>",
		"a/b/":    "a.b.>",
		"a.b/c":   "a=2Eb.>",
		"/":       "=.>",
		"//":      "=.=.>",
		"a//":     "a.=.>",
		"größe/x": "gr=C3=B6=C3=9Fe.>",
	} {
		got, err := kv.EncodePrefix(prefix)
		if err != nil || got != want {
			t.Errorf("EncodePrefix(%q) = %q, %v, want %q", prefix, got, err, want)
		}
	}
	for _, prefix := range []string{"\xff", "a\n", strings.Repeat("/", kv.MaxNameDepth), strings.Repeat("x", kv.MaxNameLen+1)} {
		if filter, err := kv.EncodePrefix(prefix); !errors.Is(err, kv.ErrInvalidName) {
			t.Errorf("EncodePrefix(%q) = %q, %v, want ErrInvalidName", prefix, filter, err)
		}
	}
}

func TestEncodeNameAllocations(t *testing.T) {
	for name, most := range map[string]float64{
		"shared-resource":      0,
		"photos/2026/ünïcøde/": 1,
	} {
		key, err := kv.EncodeName(name)
		if err != nil {
			t.Fatal(err)
		}
		if n := testing.AllocsPerRun(100, func() { _, _ = kv.EncodeName(name) }); n > most {
			t.Errorf("EncodeName(%q) allocates %v times, want at most %v", name, n, most)
		}
		if n := testing.AllocsPerRun(100, func() { _, _ = kv.DecodeKey(key) }); n > most {
			t.Errorf("DecodeKey(%q) allocates %v times, want at most %v", key, n, most)
		}
	}
}

// names draws valid names in which the characters that matter are frequent.
func names() *rapid.Generator[string] {
	char := rapid.OneOf(
		rapid.SampledFrom([]rune("//..==-_aAzZ09*> 2EFé\ufffd\U0001F512")),
		rapid.Rune(),
	)
	return rapid.StringOfN(char, 1, 24, kv.MaxNameLen).Filter(func(s string) bool {
		_, err := kv.EncodeName(s)
		return err == nil
	})
}

func TestNamesAreInjective(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := names().Draw(t, "a"), names().Draw(t, "b")
		ka, err := kv.EncodeName(a)
		if err != nil {
			t.Fatal(err)
		}
		kb, err := kv.EncodeName(b)
		if err != nil {
			t.Fatal(err)
		}
		if (a == b) != (ka == kb) {
			t.Fatalf("%q is %q, %q is %q", a, ka, b, kb)
		}
		if back, err := kv.DecodeKey(ka); err != nil || back != a {
			t.Fatalf("%q is %q is %q, %v", a, ka, back, err)
		}
	})
}

func TestPrefixFilterCoversEveryName(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := names().Draw(t, "name")
		runes := []rune(name)
		prefix := string(runes[:rapid.IntRange(0, len(runes)).Draw(t, "cut")])
		filter, err := kv.EncodePrefix(prefix)
		if err != nil {
			t.Fatalf("prefix %q of %q: %v", prefix, name, err)
		}
		key, err := kv.EncodeName(name)
		if err != nil {
			t.Fatal(err)
		}
		if !matches(filter, key) {
			t.Fatalf("filter %q of prefix %q misses %q, the key of %q", filter, prefix, key, name)
		}
		// Narrowest: one more complete level would miss the prefix itself.
		if levels := strings.Count(filter, "."); levels != strings.Count(prefix, "/") {
			t.Fatalf("filter %q has %d levels, prefix %q has %d", filter, levels, prefix, strings.Count(prefix, "/"))
		}
	})
}

// matches is subject matching for filters whose only wildcard is a final '>'.
func matches(filter, key string) bool {
	head, ok := strings.CutSuffix(filter, ">")
	return ok && strings.HasPrefix(key, head) && len(key) > len(head)
}

func FuzzEncodeName(f *testing.F) {
	for _, s := range []string{"", "a", "a/b", "//", "=", "a=2Eb", "größe", "\xff", "a\x00", "*.>", strings.Repeat("é/", 16)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		key, err := kv.EncodeName(name)
		if err != nil {
			if !errors.Is(err, kv.ErrInvalidName) || key != "" {
				t.Fatalf("EncodeName(%q) = %q, %v", name, key, err)
			}
			return
		}
		if !utf8.ValidString(name) || !validKey.MatchString(key) || len(key) > 3*kv.MaxNameLen ||
			strings.HasPrefix(key, ".") || strings.HasSuffix(key, ".") || strings.Contains(key, "..") {
			t.Fatalf("EncodeName(%q) = %q is not a KV key", name, key)
		}
		if strings.Count(key, ".") != strings.Count(name, "/") {
			t.Fatalf("EncodeName(%q) = %q changes the levels", name, key)
		}
		if back, err := kv.DecodeKey(key); err != nil || back != name {
			t.Fatalf("DecodeKey(EncodeName(%q)) = %q, %v", name, back, err)
		}
	})
}

func FuzzDecodeKey(f *testing.F) {
	for _, s := range []string{"", "a", "a.b", "=", "=.=", "==", "=2E", "=2e", "=41", "=C3=A9", "=C3", "a..b", "=3D=.a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, key string) {
		name, err := kv.DecodeKey(key)
		if err != nil {
			if !errors.Is(err, kv.ErrInvalidName) || name != "" {
				t.Fatalf("DecodeKey(%q) = %q, %v", key, name, err)
			}
			return
		}
		if again, err := kv.EncodeName(name); err != nil || again != key {
			t.Fatalf("EncodeName(DecodeKey(%q)) = %q, %v", key, again, err)
		}
	})
}

// M47: the keys that the module writes beside records, as that of validations, are those of no name.
func TestM47_NoNameHasAKeyOfTheModule(t *testing.T) {
	for _, key := range []string{"=v", "=position"} {
		if name, err := kv.DecodeKey(key); !errors.Is(err, kv.ErrInvalidName) {
			t.Errorf("%s is the key of %q, %v", key, name, err)
		}
		if enc, err := kv.EncodeName(key); err != nil || enc == key {
			t.Errorf("the name %q has the key %s, %v", key, enc, err)
		}
	}
}

// A path is in one shard, and the shards are known to programs in other languages.
func TestShard(t *testing.T) {
	for key, want := range map[string]int{"": 2166136261 % 7, "a": 0xe40c292c % 7, "foobar": 0xbf9cf968 % 7, "foobar.b": 0xbf9cf968 % 7, "foobar.b.c": 0xbf9cf968 % 7, "foobar.c.d": 0xbf9cf968 % 7} {
		if got := kv.Shard(key, 7); got != want {
			t.Errorf("%q is in shard %d, not %d", key, got, want)
		}
	}
	if kv.Shard("a", 0) != 0 || kv.Shard("a", 1) != 0 {
		t.Error("one shard has all")
	}
	if got := kv.LocksBuckets("f", 1); len(got) != 1 || got[0] != "f-locks" {
		t.Errorf("one shard is %q", got)
	}
	if got := kv.LocksBuckets("f", 2); len(got) != 2 || got[1] != "f-locks-1" {
		t.Errorf("two shards are %q", got)
	}
}
