package natscontext

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// Settings are the settings of a context of the nats command, in its file format.
type Settings struct {
	URL         string `json:"url"`
	Creds       string `json:"creds"`
	NKey        string `json:"nkey"`
	User        string `json:"user"`
	Password    string `json:"password"`
	Token       string `json:"token"`
	UserJWT     string `json:"user_jwt"`
	UserSeed    string `json:"user_seed"`
	Cert        string `json:"cert"`
	Key         string `json:"key"`
	CA          string `json:"ca"`
	TLSFirst    bool   `json:"tls_first"`
	InboxPrefix string `json:"inbox_prefix"`

	// FromFlags is set if the credentials come from flags: they are plain values and paths, without the references that
	// a context can contain.
	FromFlags bool `json:"-"`

	name string // name of the context, for messages
}

// unused are settings that matter to nobody here, or only together with others.
var unused = []string{"name", "description", "color_scheme", "windows_cert_match_by", "windows_cert_match", "windows_ca_certs_match"}

// unusable are settings that are not supported, or with which locks can't be reached, and what to do instead.
var unusable = map[string]string{
	"jetstream_domain":       "connect to a server of that domain, with a context without it",
	"jetstream_api_prefix":   "use credentials of the account that has the streams",
	"jetstream_event_prefix": "use a context without it",
	"socks_proxy":            "reach the server without a proxy, or through a tunnel",
	"nsc":                    "write the credentials to a file with 'nsc generate creds' and use that",
	"windows_cert_store":     "use files with --tlscert, --tlskey and --tlsca",
}

// Dir returns the directory of the nats command's contexts.
func Dir() (string, error) {
	parent := os.Getenv("XDG_CONFIG_HOME")
	if parent == "" {
		u, err := user.Current()
		if err != nil {
			return "", err
		}
		parent = filepath.Join(u.HomeDir, ".config")
	}
	return filepath.Join(parent, "nats", "context"), nil
}

// Load reads a context by its name, or from a .json file. It ignores which context is selected for the nats command.
func Load(name string) (Settings, error) {
	none := Settings{}
	path := name
	if fi, err := os.Stat(name); err != nil || fi.IsDir() || !strings.HasSuffix(name, ".json") {
		dir, err := Dir()
		if err != nil {
			return none, fmt.Errorf("context %q: no configuration directory of the nats command: %w", name, err)
		}
		if strings.ContainsAny(name, `/\`) || strings.Contains(name, "..") {
			return none, fmt.Errorf("context %q is neither a name nor a .json file that exists: %s", name, known(dir))
		}
		path = filepath.Join(dir, name+".json")
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return none, fmt.Errorf("no context %q: %s", name, known(filepath.Dir(path)))
	}
	if err != nil {
		return none, fmt.Errorf("context %q can't be read: %w", name, err)
	}
	s := Settings{name: name}
	if err := s.decode(data, path); err != nil {
		return none, err
	}
	s.URL = cmp.Or(s.URL, nats.DefaultURL) // as with the nats command
	for _, file := range []*string{&s.Creds, &s.NKey, &s.Cert, &s.Key, &s.CA} {
		*file = expandHome(*file)
	}
	switch {
	case (s.Cert == "") != (s.Key == ""):
		return none, fmt.Errorf("context %q: the settings \"cert\" and \"key\" belong together", name)
	case s.UserSeed != "" && s.UserJWT == "":
		return none, fmt.Errorf("context %q: the setting \"user_seed\" needs \"user_jwt\"", name)
	}
	return s, nil
}

func known(dir string) string {
	names := Names(dir)
	if len(names) == 0 {
		return "there are none in " + dir
	}
	return "there are " + strings.Join(names, ", ")
}

// Names returns the names of the contexts in a directory.
func Names(dir string) (names []string) {
	files, _ := os.ReadDir(dir)
	for _, f := range files {
		if name, ok := strings.CutSuffix(f.Name(), ".json"); ok {
			names = append(names, name)
		}
	}
	return names
}

// decode refuses unknown settings, because they may change the server or the user. Errors don't quote values, which may
// be secret.
func (s *Settings) decode(data []byte, path string) error {
	invalid := func(format string, args ...any) error {
		return fmt.Errorf("context %q (%s): %w", s.name, path, fmt.Errorf(format, args...))
	}
	var all map[string]any
	err := json.Unmarshal(data, s)
	if kind, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return invalid("the setting %q is no %v", kind.Field, kind.Type)
	}
	if err != nil || json.Unmarshal(data, &all) != nil {
		return invalid("it is no JSON object")
	}
	ours, _ := json.Marshal(Settings{})
	for _, field := range slices.Sorted(maps.Keys(all)) {
		value, key := all[field], strings.ToLower(field)
		switch {
		case value == nil || value == "" || value == false, slices.Contains(unused, key), bytes.Contains(ours, []byte(`"`+key+`":`)):
		case unusable[key] != "":
			return fmt.Errorf("context %q has the setting %q, which lockfabric can't use: %s", s.name, key, unusable[key])
		default:
			return invalid("the setting %q is not known to this version: name server and credentials with flags instead", field)
		}
	}
	return nil
}

// expandHome replaces variables and a leading ~, like the nats command.
func expandHome(path string) string {
	path = os.ExpandEnv(path)
	if rest, ok := strings.CutPrefix(path, "~"); ok {
		if u, err := user.Current(); err == nil {
			return u.HomeDir + rest
		}
	}
	return path
}

// Secrets are texts that no message may contain.
type Secrets []string

// AddURLs adds the part before the host of each URL: all of it, as it is written.
func (s *Secrets) AddURLs(list string) {
	for one := range strings.SplitSeq(list, ",") {
		u, err := url.Parse(strings.TrimSpace(one))
		if err != nil || u.User == nil {
			continue
		}
		*s = append(*s, u.User.String()+"@")
		secret, ok := u.User.Password()
		if !ok {
			secret = u.User.Username() // a user name without a password is a token
		}
		*s = append(*s, secret)
	}
}

// Hide replaces secrets in a text. Short secrets are replaced only in URLs, because replacing them everywhere would
// reveal them. No message should contain a secret; Hide is an additional protection.
func (s Secrets) Hide(text string) string {
	const short = 6
	for _, secret := range slices.Backward(slices.SortedFunc(slices.Values(s), func(a, b string) int { return len(a) - len(b) })) {
		if end, ok := strings.CutSuffix(secret, "@"); ok && end != "" {
			text = strings.ReplaceAll(text, "//"+secret, "//xxxxx@")
		}
		if len(secret) >= short {
			text = strings.ReplaceAll(text, secret, "xxxxx")
			text = strings.ReplaceAll(text, url.PathEscape(secret), "xxxxx")
		}
	}
	return text
}

// Kinds returns the kinds of credentials that are set.
func (s *Settings) Kinds() []string {
	return s.named([][2]string{
		{s.Creds, "creds"}, {s.NKey, "nkey"}, {s.User, "user"}, {s.Token, "token"}, {s.UserJWT, "user_jwt"},
	})
}

// Flags returns the names of the flags that are set.
func (s *Settings) Flags() []string {
	first := map[bool]string{true: "set"}[s.TLSFirst]
	return append(s.Kinds(), s.named([][2]string{
		{s.Cert, "tlscert"}, {s.CA, "tlsca"}, {first, "tlsfirst"}, {s.InboxPrefix, "inbox-prefix"},
	})...)
}

func (s *Settings) named(list [][2]string) (names []string) {
	dashes := map[bool]string{true: "--"}[s.FromFlags]
	for _, l := range list {
		if l[0] != "" {
			names = append(names, dashes+l[1])
		}
	}
	return names
}

// Forget removes all credentials.
func (s *Settings) Forget() {
	s.Creds, s.NKey, s.User, s.Password, s.Token, s.UserJWT, s.UserSeed = "", "", "", "", "", "", ""
}

// Options converts the settings to options of the NATS client, and checks the files. The client reads files later and
// would report a missing one as a network problem. It reads them again at every reconnect.
func (s *Settings) Options() (opts []nats.Option, hidden Secrets, err error) {
	for _, value := range []*string{&s.Password, &s.Token, &s.UserJWT, &s.UserSeed} {
		if err == nil && !s.FromFlags {
			*value, err = s.literal(*value)
		}
	}
	add := func(given bool, option func() (nats.Option, error)) {
		if err != nil || !given {
			return
		}
		var o nats.Option
		if o, err = option(); err == nil {
			opts = append(opts, o)
		}
	}
	is := func(o nats.Option) func() (nats.Option, error) { return func() (nats.Option, error) { return o, nil } }
	add(s.User != "", is(nats.UserInfo(s.User, s.Password)))
	add(s.Creds != "", s.credsOption)
	add(s.NKey != "", s.nkeyOption)
	add(s.Token != "", is(nats.Token(s.Token)))
	add(s.UserJWT != "", s.jwtOption)
	add(s.Cert != "", s.certOption)
	add(s.CA != "", s.caOption)
	add(s.TLSFirst, is(nats.TLSHandshakeFirst()))
	add(s.InboxPrefix != "", s.inboxOption)
	hidden = Secrets{s.Password, s.Token, s.UserSeed, s.UserJWT}
	if err != nil {
		return nil, hidden, err
	}
	return opts, hidden, nil
}

func (s *Settings) jwtOption() (nats.Option, error) {
	if s.UserSeed != "" {
		return nats.UserJWTAndSeed(s.UserJWT, s.UserSeed), nil
	}
	return nats.UserJWT(func() (string, error) { return s.UserJWT, nil }, func([]byte) ([]byte, error) { return nil, nil }), nil // of a bearer
}

func (s *Settings) certOption() (nats.Option, error) {
	if _, err := tls.LoadX509KeyPair(s.Cert, s.Key); err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", s.Cert, s.Key, err)
	}
	return nats.ClientCert(s.Cert, s.Key), nil
}

func (s *Settings) inboxOption() (nats.Option, error) {
	o := nats.CustomInboxPrefix(s.InboxPrefix)
	if err := o(&nats.Options{}); err != nil {
		return nil, fmt.Errorf("inbox prefix %q: %w", s.InboxPrefix, err)
	}
	return o, nil
}

func (s *Settings) credsOption() (nats.Option, error) {
	path, data, err := s.file("creds", s.Creds)
	if err != nil {
		return nil, err
	}
	jwt, err := nkeys.ParseDecoratedJWT(data)
	// Without the decoration, it returns the whole file, which may be a seed and must not be sent to a server.
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
			return nil, fmt.Errorf("nkey %s: %w", path, err)
		}
		return o, nil
	}
	pair, err := nkeys.ParseDecoratedUserNKey(data)
	if err != nil {
		return nil, fmt.Errorf("nkey in the context: %w", err)
	}
	public, err := pair.PublicKey()
	return nats.Nkey(public, pair.Sign), err
}

// file returns the contents to which a setting refers, and the path if it is a path.
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

// literal returns the value of a setting, or the value to which it refers.
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

// resolve resolves the references that contexts can contain instead of a value. ok is false if ref is not a reference.
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

func (s *Settings) caOption() (nats.Option, error) {
	data, err := os.ReadFile(s.CA)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("certificate authority %s: no certificate in PEM in it", s.CA)
	}
	return nats.RootCAs(s.CA), nil
}
