package natscontext

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// Kinds names the kinds of credentials that are set.
func (s *Settings) Kinds() []string {
	return s.named([][2]string{
		{s.Creds, "creds"}, {s.NKey, "nkey"}, {s.User, "user"}, {s.Token, "token"}, {s.UserJWT, "user_jwt"},
	})
}

// Flags names the flags that are set.
func (s *Settings) Flags() []string {
	first := ""
	if s.TLSFirst {
		first = "set"
	}
	return append(s.Kinds(), s.named([][2]string{
		{s.Cert, "tlscert"}, {s.CA, "tlsca"}, {first, "tlsfirst"}, {s.InboxPrefix, "inbox-prefix"},
	})...)
}

func (s *Settings) named(list [][2]string) (names []string) {
	for _, l := range list {
		if l[0] != "" && s.FromFlags {
			names = append(names, "--"+l[1])
		} else if l[0] != "" {
			names = append(names, l[1])
		}
	}
	return names
}

// Forget removes all credentials.
func (s *Settings) Forget() {
	s.Creds, s.NKey, s.User, s.Password, s.Token, s.UserJWT, s.UserSeed = "", "", "", "", "", "", ""
}

// Options makes options of the NATS client from the settings, having looked at the files: the client would read them
// later, and take what it finds for a network problem. It reads them again whenever it reconnects.
func (s *Settings) Options() (opts []nats.Option, hidden Secrets, err error) {
	add := func(o nats.Option, err error) error {
		if err == nil {
			opts = append(opts, o)
		}
		return err
	}
	for _, value := range []*string{&s.Password, &s.Token, &s.UserJWT, &s.UserSeed} {
		if s.FromFlags {
			break
		}
		if err == nil {
			*value, err = s.literal(*value)
		}
	}
	hidden = Secrets{s.Password, s.Token, s.UserSeed, s.UserJWT}
	if err == nil && s.User != "" {
		err = add(nats.UserInfo(s.User, s.Password), nil)
	}
	if err == nil && s.Creds != "" {
		err = add(s.credsOption())
	}
	if err == nil && s.NKey != "" {
		err = add(s.nkeyOption())
	}
	if err == nil && s.Token != "" {
		err = add(nats.Token(s.Token), nil)
	}
	switch {
	case err != nil || s.UserJWT == "":
	case s.UserSeed != "":
		err = add(nats.UserJWTAndSeed(s.UserJWT, s.UserSeed), nil)
	default: // a bearer's
		err = add(nats.UserJWT(func() (string, error) { return s.UserJWT, nil }, func([]byte) ([]byte, error) { return nil, nil }), nil)
	}
	if err == nil && s.Cert != "" {
		_, err = tls.LoadX509KeyPair(s.Cert, s.Key)
		if err != nil {
			err = fmt.Errorf("certificate %s with key %s: %w", s.Cert, s.Key, err)
		}
		err = add(nats.ClientCert(s.Cert, s.Key), err)
	}
	if err == nil && s.CA != "" {
		err = add(nats.RootCAs(s.CA), checkCA(s.CA))
	}
	if err == nil && s.TLSFirst {
		err = add(nats.TLSHandshakeFirst(), nil)
	}
	if err == nil && s.InboxPrefix != "" {
		o := nats.CustomInboxPrefix(s.InboxPrefix)
		if err = add(o, o(&nats.Options{})); err != nil {
			err = fmt.Errorf("inbox prefix %q: %w", s.InboxPrefix, err)
		}
	}
	if err != nil {
		return nil, hidden, err
	}
	return opts, hidden, nil
}

func (s *Settings) credsOption() (nats.Option, error) {
	path, data, err := s.file("creds", s.Creds)
	if err != nil {
		return nil, err
	}
	jwt, err := nkeys.ParseDecoratedJWT(data)
	// Without the decoration it returns all that there is, which may be a seed and must not go to any server.
	if err == nil && strings.Count(jwt, ".") != 2 {
		err = errors.New("there is no user's JWT in it")
	}
	if err == nil {
		_, err = nkeys.ParseDecoratedUserNKey(data)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("credentials %s: %w", cmp.Or(path, "in the context"), err)
	case path == "":
		return nats.UserCredentialBytes(data), nil
	}
	return nats.UserCredentials(path), nil
}

func (s *Settings) nkeyOption() (nats.Option, error) {
	path, data, err := s.file("nkey", s.NKey)
	if err != nil {
		return nil, err
	}
	if path != "" {
		o, err := nats.NkeyOptionFromSeed(path)
		if err != nil {
			err = fmt.Errorf("nkey %s: %w", path, err)
		}
		return o, err
	}
	pair, err := nkeys.ParseDecoratedUserNKey(data)
	if err != nil {
		return nil, fmt.Errorf("nkey in the context: %w", err)
	}
	public, err := pair.PublicKey()
	return nats.Nkey(public, pair.Sign), err
}

// file returns the contents that a setting refers to, and the path if it is one.
func (s *Settings) file(field, ref string) (path string, data []byte, err error) {
	if !s.FromFlags {
		if text, ok, err := resolve(ref); ok || err != nil {
			return "", []byte(text), s.wrap(field, err)
		}
		ref = strings.TrimPrefix(ref, "file://")
	}
	if _, err := nkeys.FromSeed([]byte(filepath.Base(ref))); err == nil || strings.Contains(ref, "\n") {
		return "", nil, fmt.Errorf("%s wants the name of a file, not what is in it", field)
	}
	data, err = os.ReadFile(ref)
	return ref, data, s.wrap(field, err)
}

// literal returns the value that a setting refers to, or is.
func (s *Settings) literal(ref string) (string, error) {
	text, ok, err := resolve(ref)
	if path, is := strings.CutPrefix(ref, "file://"); is {
		data, err := os.ReadFile(expandHome(path))
		return strings.TrimRight(string(data), "\r\n"), s.wrap("a file", err)
	}
	if ok || err != nil {
		return strings.TrimRight(text, "\r\n"), s.wrap("a credential", err)
	}
	return ref, nil
}

func (s *Settings) wrap(field string, err error) error {
	if err != nil && s.name != "" && !s.FromFlags {
		return fmt.Errorf("context %q: %s: %w", s.name, field, err)
	}
	if err != nil {
		return fmt.Errorf("--%s: %w", field, err)
	}
	return nil
}

// resolve follows the references that contexts can have in place of a value. ok is false for what is none.
func resolve(ref string) (text string, ok bool, err error) {
	if name, is := strings.CutPrefix(ref, "env://"); is {
		if text = os.Getenv(name); text == "" {
			return "", true, fmt.Errorf("the environment variable %q is not set", name)
		}
		return text, true, nil
	}
	if rest, is := strings.CutPrefix(ref, "data:"); is {
		header, payload, _ := strings.Cut(rest, ",")
		data, err := base64.StdEncoding.DecodeString(payload)
		if err != nil || !slices.Contains(strings.Split(header, ";"), "base64") {
			return "", true, errors.New("a data: reference is not in base64")
		}
		return string(data), true, nil
	}
	for _, scheme := range []string{"op", "nsc"} {
		if strings.HasPrefix(ref, scheme+"://") {
			return "", true, fmt.Errorf("lockfabric doesn't follow %s:// references: put the credentials into a file", scheme)
		}
	}
	return "", false, nil
}

func checkCA(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("certificate authority: %w", err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(data) {
		return fmt.Errorf("certificate authority %s: no certificate in PEM in it", path)
	}
	return nil
}
