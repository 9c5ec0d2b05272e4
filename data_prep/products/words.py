"""The text on food packages in seven languages, and consistent nutrition values.

Only Pillow's built-in font is available everywhere, and it has no accented letters. `plain` replaces them by their base
letters, as cheap label printers do.
"""

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")


class Language(NamedTuple):
    """The texts of one language. Alternatives or parts of a list are separated by |."""

    title: str  # alternative headings of a nutrition table
    per_100: str
    serving: str
    nutrients: str  # energy, fat, saturates, carbohydrate, sugars, fiber, protein, salt
    ingredients: str  # the heading, then the ingredients
    notes: str
    steps: str  # of a recipe
    week: str


LANGUAGES = {
    "en": Language(
        "Nutrition information|Nutrition facts|Typical values|Nutrition",
        "per 100 g",
        "per serving",
        "Energy|Fat|of which saturates|Carbohydrate|of which sugars|Fibre|Protein|Salt",
        "Ingredients|oats|sugar|wheat flour|hazelnuts|milk powder|cocoa butter|barley malt|raisins|salt|honey",
        "Store in a cool, dry place. Once opened, eat within three days. Recycle the box with paper.",
        "Preheat the oven|Spread on a tray|Bake until golden|Leave to cool",
        "Mon|Tue|Wed|Thu|Fri|Sat|Sun",
    ),
    "de": Language(
        "Nährwertangaben|Nährwerte|Durchschnittliche Nährwerte|Nährwerttabelle",
        "pro 100 g",
        "pro Portion",
        "Energie|Fett|davon gesättigt|Kohlenhydrate|davon Zucker|Ballaststoffe|Eiweiß|Salz",
        "Zutaten|Haferflocken|Zucker|Weizenmehl|Haselnüsse|Milchpulver|Kakaobutter|Malz|Rosinen|Speisesalz|Honig",
        "Kühl und trocken lagern. Nach dem Öffnen bald verbrauchen. Verpackung bitte zum Altpapier geben.",
        "Ofen vorheizen|Auf das Blech geben|Goldbraun backen|Abkühlen lassen",
        "Mo|Di|Mi|Do|Fr|Sa|So",
    ),
    "fr": Language(
        "Valeurs nutritionnelles|Déclaration nutritionnelle|Informations nutritionnelles",
        "pour 100 g",
        "par portion",
        "Énergie|Matières grasses|dont saturées|Glucides|dont sucres|Fibres|Protéines|Sel",
        "Ingrédients|avoine|sucre|farine de blé|noisettes|lait en poudre|beurre de cacao|malt|raisins|sel|miel",
        "À conserver au sec et au frais. Après ouverture, consommer sous trois jours. Pensez au tri.",
        "Préchauffer le four|Étaler sur la plaque|Cuire dix minutes|Laisser refroidir",
        "lun|mar|mer|jeu|ven|sam|dim",
    ),
    "es": Language(
        "Información nutricional|Valores nutricionales|Valor nutritivo",
        "por 100 g",
        "por porción",
        "Energía|Grasas|saturadas|Hidratos de carbono|azúcares|Fibra|Proteínas|Sal",
        "Ingredientes|avena|azúcar|harina de trigo|avellanas|leche en polvo|manteca de cacao|malta|pasas|sal|miel",
        "Conservar en lugar fresco y seco. Una vez abierto, consumir en tres días. Recicla este envase.",
        "Precalentar el horno|Poner en la bandeja|Hornear diez minutos|Dejar enfriar",
        "lun|mar|mié|jue|vie|sáb|dom",
    ),
    "it": Language(
        "Valori nutrizionali|Dichiarazione nutrizionale|Valori medi",
        "per 100 g",
        "per porzione",
        "Energia|Grassi|di cui saturi|Carboidrati|di cui zuccheri|Fibre|Proteine|Sale",
        "Ingredienti|avena|zucchero|farina di frumento|nocciole|latte in polvere|burro di cacao|malto|uvetta|sale|miele",
        "Conservare in luogo fresco e asciutto. Dopo l'apertura consumare entro tre giorni. Riciclare.",
        "Scaldare il forno|Stendere sulla teglia|Cuocere dieci minuti|Lasciare raffreddare",
        "lun|mar|mer|gio|ven|sab|dom",
    ),
    "pl": Language(
        "Wartość odżywcza|Informacja żywieniowa|Wartości odżywcze",
        "w 100 g",
        "w porcji",
        "Energia|Tłuszcz|w tym nasycone|Węglowodany|w tym cukry|Błonnik|Białko|Sól",
        "Składniki|płatki owsiane|cukier|mąka pszenna|orzechy|mleko w proszku|tłuszcz kakaowy|słód|rodzynki|sól|miód",
        "Przechowywać w suchym miejscu. Po otwarciu spożyć w ciągu trzech dni. Opakowanie do recyklingu.",
        "Rozgrzać piekarnik|Wyłożyć na blachę|Piec dziesięć minut|Ostudzić",
        "pon|wt|śr|czw|pt|sob|nd",
    ),
    "nl": Language(
        "Voedingswaarde|Voedingswaarden|Gemiddelde voedingswaarde",
        "per 100 g",
        "per portie",
        "Energie|Vetten|waarvan verzadigd|Koolhydraten|waarvan suikers|Vezels|Eiwitten|Zout",
        "Ingrediënten|havervlokken|suiker|tarwebloem|hazelnoten|melkpoeder|cacaoboter|mout|rozijnen|zout|honing",
        "Koel en droog bewaren. Na openen binnen drie dagen gebruiken. Verpakking bij het oud papier.",
        "Oven voorverwarmen|Op de bakplaat leggen|Tien minuten bakken|Laten afkoelen",
        "ma|di|wo|do|vr|za|zo",
    ),
}
BRANDS = [
    "Alba", "Norda", "Verdano", "Milvia", "Kornhof", "Solea", "Bonvita", "Haldis", "Orosa",
    "Tavola", "Lumi", "Pikko", "Marenn", "Zefir", "Cantu", "Brio",
]  # fmt: skip
GOODS = [
    "Muesli", "Granola", "Crackers", "Cereal", "Pasta", "Biscuits", "Cocoa", "Muffins", "Lentils",
    "Crisps", "Tomato", "Yoghurt", "Honey", "Soup",
]  # fmt: skip
_LETTERS = str.maketrans({"ß": "ss", "ł": "l", "Ł": "L", "ø": "o", "æ": "ae"})


def plain(text: str) -> str:
    """The text with base letters instead of accented ones: "Nährwerte" → "Nahrwerte"."""
    return unicodedata.normalize("NFKD", text.translate(_LETTERS)).encode("ascii", "ignore").decode()


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """A random element of a sequence. numpy's `choice` would turn tuples into arrays."""
    return options[int(rng.integers(len(options)))]


def words(field: str) -> list[str]:
    """The parts of one field, without accents: "Mon|Tue" → ["Mon", "Tue"]."""
    return plain(field).split("|")


def nutrients(rng: np.random.Generator, share: float = 1.0) -> list[str]:
    """Random values of `share` × 100 g of a product, in the order of `Language.nutrients`.

    The energy follows from the other values: 37 kJ per gram of fat, 17 of carbohydrate or protein and 8 of fiber
    (Regulation (EU) No 1169/2011, Annex XIV).
    """
    fat, carbohydrate, protein, fiber, _ = 100 * share * rng.dirichlet((0.8, 2, 0.7, 0.5, 1.5))
    kilojoules = 37 * fat + 17 * (carbohydrate + protein) + 8 * fiber
    saturates = rng.uniform(0.1, 0.7) * fat
    sugars = rng.uniform(0.05, 0.9) * carbohydrate
    salt = rng.uniform(0, 2) * share
    grams = (fat, saturates, carbohydrate, sugars, fiber, protein, salt)
    return [f"{kilojoules:.0f} kJ/{kilojoules / 4.184:.0f} kcal", *(f"{gram:.1f} g" for gram in grams)]
