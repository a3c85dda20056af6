//! What is read from a certificate of the world's: until when it holds, and by what its authority knows it.
//!
//! Whether it is genuine is for whoever it is shown to; here it is our own, or about to be.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use yasna::models::ObjectIdentifier;
use yasna::{ASN1Result, BERReader, BERReaderSeq, Tag, TagClass, parse_der};

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    pub from: SystemTime,
    pub until: SystemTime,
    /// As it is encoded, sign included.
    pub serial: Vec<u8>,
    /// Which key of its authority signed it.
    pub authority_key: Option<Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("what should be a certificate is none")]
pub struct NoCertificate;

impl Leaf {
    /// # Errors
    /// The bytes are no certificate.
    pub fn read(certificate: &CertificateDer<'_>) -> Result<Self, NoCertificate> {
        let read = parse_der(certificate, |reader| {
            reader.read_sequence(|certificate| {
                let leaf = certificate.next().read_sequence(signed_part)?;
                // The signature, and what it was made with.
                certificate.next().read_der()?;
                certificate.next().read_der()?;
                Ok(leaf)
            })
        });
        read.map_err(|_| NoCertificate)
    }

    /// The whole of its time.
    pub fn life(&self) -> Duration {
        self.until.duration_since(self.from).unwrap_or_default()
    }
}

fn signed_part(part: &mut BERReaderSeq<'_, '_>) -> ASN1Result<Leaf> {
    // Version 1 does not say its number.
    part.read_optional(|reader| reader.read_tagged(Tag::context(0), |value| value.read_der()))?;
    let serial = part.next().read_tagged_der()?.value().to_vec();
    // Signature's algorithm, and issuer.
    part.next().read_der()?;
    part.next().read_der()?;
    let (from, until) =
        part.next().read_sequence(|validity| Ok((time(validity.next())?, time(validity.next())?)))?;
    // Subject, and its key.
    part.next().read_der()?;
    part.next().read_der()?;
    for unused in 1..=2 {
        let unique_id = Tag::context(unused);
        part.read_optional(|reader| reader.read_tagged_implicit(unique_id, |value| value.read_bytes()))?;
    }
    let extensions = part.read_optional(|reader| reader.read_tagged(Tag::context(3), extensions))?;
    Ok(Leaf { from, until, serial, authority_key: extensions.flatten() })
}

/// Until 2049 years have two digits, from then on four.
fn time(reader: BERReader<'_, '_>) -> ASN1Result<SystemTime> {
    let tag = reader.lookahead_tag()?;
    let at = match tag.tag_number {
        23 if tag.tag_class == TagClass::Universal => *reader.read_utctime()?.datetime(),
        _ => *reader.read_generalized_time()?.datetime(),
    };
    Ok(at.into())
}

/// The identifier of the authority's key, where there is one.
fn extensions(reader: BERReader<'_, '_>) -> ASN1Result<Option<Vec<u8>>> {
    let authority_key = ObjectIdentifier::from_slice(&[2, 5, 29, 35]);
    let mut found = None;
    reader.read_sequence_of(|extension| {
        extension.read_sequence(|extension| {
            let kind = extension.next().read_oid()?;
            extension.read_optional(|value| value.read_bool())?;
            let value = extension.next().read_bytes()?;
            if kind == authority_key {
                found = key_identifier(&value)?;
            }
            Ok(())
        })
    })?;
    Ok(found)
}

fn key_identifier(value: &[u8]) -> ASN1Result<Option<Vec<u8>>> {
    parse_der(value, |reader| {
        reader.read_sequence(|fields| {
            let key = fields.read_optional(|reader| {
                reader.read_tagged_implicit(Tag::context(0), |value| value.read_bytes())
            })?;
            // The same authority by its name and its certificate's number.
            fields.read_optional(|value| value.read_der())?;
            fields.read_optional(|value| value.read_der())?;
            Ok(key)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_tells_its_time_and_who_signed_it() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["shop.example.com".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 2);
        params.not_after = rcgen::date_time_ymd(2051, 1, 2);
        params.serial_number = Some(rcgen::SerialNumber::from_slice(&[0x87, 0x65]));
        params.use_authority_key_identifier_extension = true;
        let identifier = params.key_identifier(&key);
        let issuer = rcgen::Issuer::from_params(&params, &key);
        let made = params.signed_by(&key, &issuer).unwrap();
        let leaf = Leaf::read(made.der()).unwrap();
        let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert_eq!((since(leaf.from), since(leaf.until)), (1_767_312_000, 2_556_230_400));
        assert_eq!(leaf.serial, [0, 0x87, 0x65], "the sign belongs to the number");
        assert_eq!(leaf.authority_key, Some(identifier));
        assert_eq!(leaf.life().as_secs(), 2_556_230_400 - 1_767_312_000);
    }

    #[test]
    fn what_is_cut_off_or_something_else_is_no_certificate() {
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let whole = made.cert.der();
        assert_eq!(Leaf::read(whole).unwrap().authority_key, None);
        for length in 0..whole.len() {
            let cut = CertificateDer::from(whole[..length].to_vec());
            assert_eq!(Leaf::read(&cut), Err(NoCertificate), "cut off after {length} bytes");
        }
    }
}
