package natscontext_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/cmd/lockfabric/internal/natscontext"
)

const secret = "correct-horse-battery"

// stored writes a context into a configuration directory of this test's own.
func stored(t *testing.T, name, text string) {
	t.Helper()
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	dir, err := natscontext.Dir()
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name+".json"), []byte(text), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// applied returns what the client would make of settings.
func applied(t *testing.T, s natscontext.Settings) (o nats.Options, hidden natscontext.Secrets) {
	t.Helper()
	opts, hidden, err := s.Options()
	if err != nil {
		t.Fatal(err)
	}
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			t.Fatal(err)
		}
	}
	return o, hidden
}

func TestLoad(t *testing.T) {
	stored(t, "prod", `{"url":"nats://example:4222","user":"u","password":"`+secret+`","inbox_prefix":"_I"}`)
	s, err := natscontext.Load("prod")
	if err != nil {
		t.Fatal(err)
	}
	if kinds := s.Kinds(); s.URL != "nats://example:4222" || len(kinds) != 1 || kinds[0] != "user" {
		t.Errorf("%q of %q", kinds, s.URL)
	}
	o, hidden := applied(t, s)
	if o.User != "u" || o.Password != secret || o.InboxPrefix != "_I" {
		t.Errorf("user %q, password %q, inbox prefix %q", o.User, o.Password, o.InboxPrefix)
	}
	if text := hidden.Hide("it is " + secret); text != "it is xxxxx" {
		t.Errorf("%q", text)
	}
	if _, err := natscontext.Load("pro"); err == nil || !strings.Contains(err.Error(), "there are prod") {
		t.Errorf("another name: %v", err)
	}
	s.Forget()
	if kinds := s.Kinds(); len(kinds) > 0 || s.Password != "" {
		t.Errorf("%q are left", kinds)
	}
}

// Values can stand elsewhere, but only where a context says so: a flag is itself.
func TestReferences(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TOKEN_OF_TEST", secret)
	for name, ref := range map[string]string{
		"literal":  secret,
		"file":     "file://" + path,
		"variable": "env://TOKEN_OF_TEST",
		"data":     "data:;base64,Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5",
	} {
		t.Run(name, func(t *testing.T) {
			if o, _ := applied(t, natscontext.Settings{Token: ref}); o.Token != secret {
				t.Errorf("a context's: %q", o.Token)
			}
			if o, _ := applied(t, natscontext.Settings{Token: ref, FromFlags: true}); o.Token != ref {
				t.Errorf("a flag's: %q", o.Token)
			}
		})
	}
	for ref, want := range map[string]string{
		"env://NOT_SET_IN_TEST": "not set",
		"op://vault/item":       "op:// references",
		"data:;base64,%%":       "base64",
		"file:///nowhere/token": "no such file",
	} {
		s := natscontext.Settings{Token: ref}
		if _, _, err := s.Options(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

// A setting that is dropped could mean another server, or another user.
func TestSettingsThatAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		`{"url":"x","quantum":"` + secret + `"}`: `"quantum" is not known`,
		`{"jetstream_domain":"hub"}`:             `"jetstream_domain", which lockfabric can't use`,
		`{"cert":"/c"}`:                          "belong together",
		`{"user_seed":"` + secret + `"}`:         `needs "user_jwt"`,
		`{"user":` + secret:                      "no JSON object",
		`{"user":["` + secret + `"]}`:            `"user" is no string`,
		`[]`:                                     "",
	} {
		stored(t, "c", text)
		_, err := natscontext.Load("c")
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", text, err)
		}
	}
	// What says nothing may be anything: other versions write more than we know.
	stored(t, "c", `{"url":"nats://h","quantum":"","entangled":false,"spin":null}`)
	if _, err := natscontext.Load("c"); err != nil {
		t.Error(err)
	}
}

func TestHide(t *testing.T) {
	s := natscontext.Secrets{secret, "ab"}
	s.AddURLs("nats://tim:pa%20ss@one:4222, nats://lone-token@two")
	for text, want := range map[string]string{
		secret + " of nats://tim:pa%20ss@one": "xxxxx of nats://xxxxx@one",
		"nats://lone-token@two: lone-token":   "nats://xxxxx@two: xxxxx",
		"absent":                              "absent", // a short one would turn this into a riddle
	} {
		if got := s.Hide(text); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// Whatever stands in the file, an error does not tell it.
func FuzzLoad(f *testing.F) {
	f.Add(`{"url":"nats://h","user":"u"}`, "password")
	f.Add(`{}`, "quantum")
	f.Add(`]`, "")
	f.Fuzz(func(t *testing.T, text, field string) {
		var fields map[string]any
		if json.Unmarshal([]byte(text), &fields) == nil && fields != nil {
			fields[field] = secret
			b, err := json.Marshal(fields)
			if err != nil {
				t.Fatal(err)
			}
			text = string(b)
		} else {
			text = secret + text
		}
		path := filepath.Join(t.TempDir(), "c.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := natscontext.Load(path); err != nil && strings.Contains(err.Error(), secret) && !strings.Contains(field, secret) {
			t.Errorf("%s: %v, %q", text, err, s.Kinds())
		}
	})
}
