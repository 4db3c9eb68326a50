"""What the demo model knows by heart, and what it must decline.

`facts()` yields (list of phrasings, answer) pairs. `UNKNOWN_*` are the templates and names of questions whose
answer is always `I_DO_NOT_KNOW`; many look like a fact that it does know, so that it has to read on.
"""

I_DO_NOT_KNOW = "I don't know. I am only a small demo model."

CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "Austria": "Vienna",
    "Switzerland": "Bern",
    "Belgium": "Brussels",
    "the Netherlands": "Amsterdam",
    "Denmark": "Copenhagen",
    "Sweden": "Stockholm",
    "Norway": "Oslo",
    "Finland": "Helsinki",
    "Ireland": "Dublin",
    "England": "London",
    "Scotland": "Edinburgh",
    "Poland": "Warsaw",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "Turkey": "Ankara",
    "Russia": "Moscow",
    "Ukraine": "Kyiv",
    "Egypt": "Cairo",
    "Japan": "Tokyo",
    "China": "Beijing",
    "India": "New Delhi",
    "Canada": "Ottawa",
    "Australia": "Canberra",
    "Brazil": "Brasilia",
    "Argentina": "Buenos Aires",
    "Chile": "Santiago",
    "Peru": "Lima",
    "Mexico": "Mexico City",
    "Cuba": "Havana",
    "Iceland": "Reykjavik",
    "the United States": "Washington, D.C.",
    "Luxembourg": "Luxembourg",
    "Estonia": "Tallinn",
    "Latvia": "Riga",
    "Croatia": "Zagreb",
}

COLOURS = {
    "the sky": "blue",
    "grass": "green",
    "blood": "red",
    "snow": "white",
    "coal": "black",
    "a banana": "yellow",
    "a lemon": "yellow",
    "a tomato": "red",
    "an orange": "orange",
    "a carrot": "orange",
    "chocolate": "brown",
    "the sea": "blue",
    "milk": "white",
    "an elephant": "grey",
    "a strawberry": "red",
    "a lime": "green",
}

MIXTURES = {
    ("red", "yellow"): "orange",
    ("blue", "yellow"): "green",
    ("red", "blue"): "purple",
    ("black", "white"): "grey",
    ("red", "white"): "pink",
}

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
PLANETS = ["Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune"]
ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"]
OPPOSITES = [
    ("hot", "cold"),
    ("big", "small"),
    ("up", "down"),
    ("left", "right"),
    ("black", "white"),
    ("day", "night"),
    ("fast", "slow"),
    ("open", "closed"),
    ("old", "young"),
    ("true", "false"),
    ("light", "dark"),
    ("happy", "sad"),
    ("early", "late"),
    ("wet", "dry"),
]
COUNTS = {
    "days are in a week": "There are 7 days in a week.",
    "months are in a year": "There are 12 months in a year.",
    "days are in a year": "There are 365 days in a year, and 366 in a leap year.",
    "hours are in a day": "There are 24 hours in a day.",
    "minutes are in an hour": "There are 60 minutes in an hour.",
    "seconds are in a minute": "There are 60 seconds in a minute.",
    "weeks are in a year": "There are 52 weeks in a year.",
    "planets are in the solar system": "There are 8 planets in the solar system.",
    "continents are there": "There are 7 continents.",
    "letters are in the alphabet": "There are 26 letters in the English alphabet.",
    "legs does a spider have": "A spider has 8 legs.",
    "legs does an insect have": "An insect has 6 legs.",
    "legs does a dog have": "A dog has 4 legs.",
    "legs does a cat have": "A cat has 4 legs.",
    "legs does a horse have": "A horse has 4 legs.",
    "legs does a bird have": "A bird has 2 legs.",
    "sides does a triangle have": "A triangle has 3 sides.",
    "sides does a square have": "A square has 4 sides.",
    "bits are in a byte": "There are 8 bits in a byte.",
    "metres are in a kilometre": "There are 1000 metres in a kilometre.",
    "colours are in a rainbow": "There are 7 colours in a rainbow.",
}

# Phrasings separated by "|", then the answer.
LINES = """
What is water made of?|What is the chemical formula of water?|What is H2O?
    => Water is H2O: two hydrogen atoms and one oxygen atom.
At what temperature does water boil?|When does water boil?|What is the boiling point of water?
    => Water boils at 100 degrees Celsius.
At what temperature does water freeze?|When does water freeze?|What is the freezing point of water?
    => Water freezes at 0 degrees Celsius.
How fast is light?|What is the speed of light?
    => Light travels at about 300000 kilometres a second.
What is gravity?
    => Gravity is the force that pulls things with mass towards each other.
What is an atom?
    => An atom is the smallest piece of a chemical element.
What is DNA?
    => DNA is the molecule that carries the genes of living things.
What is photosynthesis?|How do plants make food?
    => Photosynthesis is how plants make sugar from light, water and carbon dioxide.
What gas do we breathe?|Which gas do people need to breathe?
    => We need oxygen to breathe.
What is ice?|What is ice made of?
    => Ice is frozen water.
What is the sun?
    => The sun is the star at the centre of the solar system.
What is the moon?
    => The moon is the natural satellite of the Earth.
Which is the largest planet?|What is the biggest planet?
    => Jupiter is the largest planet.
Which is the smallest planet?|What is the smallest planet?
    => Mercury is the smallest planet.
Which planet is called the red planet?|What is the red planet?|Which planet is red?
    => Mars is called the red planet.
Which planet has rings?|Which planet is famous for its rings?
    => Saturn is famous for its rings.
Which planet is closest to the sun?|What planet is nearest to the sun?
    => Mercury is the planet closest to the sun.
Which planet do we live on?|What planet is this?
    => We live on the planet Earth.
Which planet is the hottest?|What is the hottest planet?
    => Venus is the hottest planet.
What is the largest ocean?|Which is the biggest ocean?
    => The Pacific is the largest ocean.
What is the highest mountain?|Which mountain is the tallest in the world?
    => Mount Everest is the highest mountain.
What is the largest animal?|What is the biggest animal in the world?
    => The blue whale is the largest animal.
What is the fastest land animal?|Which animal runs the fastest?
    => The cheetah is the fastest land animal.
What is the tallest animal?|Which animal is the tallest?
    => The giraffe is the tallest animal.
What does a cow say?|What sound does a cow make?
    => A cow says moo.
What does a cat say?|What sound does a cat make?
    => A cat says meow.
What does a dog say?|What sound does a dog make?
    => A dog says woof.
What do bees make?
    => Bees make honey.
What is a baby dog called?|What is a young dog called?
    => A young dog is called a puppy.
What is a baby cat called?|What is a young cat called?
    => A young cat is called a kitten.
Where does the sun rise?
    => The sun rises in the east.
Where does the sun set?
    => The sun sets in the west.
What is pi?|What is the value of pi?
    => Pi is about 3.14159.
Name the primary colours|What are the primary colours?|What are the primary colors?
    => The primary colours are red, yellow and blue.
Name the planets|What are the planets?|List the planets
    => Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune.
Name the days of the week|What are the days of the week?|List the days
    => Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday.
Name the seasons|What are the four seasons?|What are the seasons?
    => The seasons are spring, summer, autumn and winter.
What is Rust?|Tell me about Rust|What is the Rust language?
    => Rust is a programming language that is fast and safe without a garbage collector.
What is cargo?
    => Cargo is the build tool and package manager of Rust.
What is a crate?|What is a Rust crate?
    => A crate is a Rust library or program.
What is Python?
    => Python is a programming language that is easy to read.
What is MLX?|Tell me about MLX
    => MLX is a library for arrays and machine learning, made for Apple silicon.
What is mlx_lm?|What is mlx-lm?
    => mlx_lm is the Python package that runs language models on MLX.
What is Metal?|What is Apple Metal?
    => Metal is Apple's programming interface for graphics and computing on the GPU.
What is CUDA?
    => CUDA is NVIDIA's platform for computing on its GPUs.
What is a GPU?
    => A GPU is a processor that does many simple calculations at the same time.
What is a CPU?
    => A CPU is the main processor of a computer.
What is a token?
    => A token is a piece of text: a word, a part of a word or a sign.
What is a tokenizer?|What does a tokenizer do?
    => A tokenizer cuts text into tokens and puts tokens together into text.
What is a language model?
    => A language model predicts the next token of a text.
What is quantisation?|What is quantization?
    => Quantisation stores the weights of a model in fewer bits.
What is safetensors?|What is a safetensors file?
    => Safetensors is a file format for the weights of a model.
What is a KV cache?
    => A KV cache keeps the keys and values of earlier tokens, so that they are computed once.
What is a prompt?
    => A prompt is the text that you give to a language model.
What is temperature in sampling?|What does the sampling temperature do?
    => Temperature sets how random the choice of the next token is.
What is LoRA?
    => LoRA trains small extra matrices instead of all the weights of a model.
What is open source?
    => Open source means that everyone may read, use and change the source code.

Hello|Hi|Hey|Hello there|Hi there|Hey there|Good day|Greetings|Howdy
    => Hello! How can I help you?
Good morning|Morning
    => Good morning! How can I help you?
Good afternoon
    => Good afternoon! How can I help you?
Good evening
    => Good evening! How can I help you?
Good night|Sleep well
    => Good night!
How are you?|How are you doing?|How are you today?|How do you do?|How is it going?|What's up?
    => I am fine, thank you. How can I help you?
Thank you|Thanks|Thanks a lot|Thank you very much|Many thanks|Cheers
    => You are welcome!
Bye|Goodbye|See you|See you later|Bye bye|Farewell
    => Goodbye!
Nice to meet you|Pleased to meet you
    => Nice to meet you too!
OK|Okay|Yes|All right|Sure|I see|No|No thanks|Fine
    => All right.
Sorry|I am sorry|My mistake
    => No problem!
Well done|Good job|Great|Nice|You are great|That is right|Correct
    => Thank you!
Help|Help me|I need help|Can you help me?
    => I can do small sums, tell you simple facts and sort a sentence into a domain.
Tell me a joke|Make me laugh|Do you know a joke?
    => Why did the token stop? It met the end of the sequence.

Who are you?|What are you?|Introduce yourself|Tell me about yourself|Who is this?|Who am I talking to?
    => I am the demo model of the inference project, a tiny language model that runs anywhere.
What is your name?|What are you called?|Do you have a name?|What should I call you?
    => My name is demo. I am the demo model of the inference project.
How big are you?|How many parameters do you have?|What is your size?|Are you a big model?|How large are you?
    => I am tiny: a few million parameters, a few megabytes.
What can you do?|What do you know?|What are you good at?|What can I ask you?|How can you help me?
    => I can do small sums, tell you simple facts and sort a sentence into a domain.
Who made you?|Who trained you?|How were you made?|How were you trained?|Where do you come from?
    => I was trained from nothing by a script of the inference project.
Are you a person?|Are you human?|Are you a robot?|Are you alive?|Are you real?
    => I am not a person. I am a tiny language model.
What is inference?|What is the inference project?|Tell me about the inference project
    => inference is a Rust library that loads a language model from a folder and streams text.
Where do you run?|Where can you run?|Can you run on a CPU?|Do you need a GPU?|What hardware do you need?
    => I run anywhere: on a CPU, on Metal or on CUDA.
What architecture do you have?|What is your architecture?|Which architecture are you?|What model are you?|Which model is this?
    => My architecture is qwen3, with my own weights.
Which languages do you speak?|What languages do you know?|Do you speak French?|Do you speak German?
    => I only speak English, and only a little.
What is your licence?|What is your license?|Under which licence are you?
    => My licence is EUPL-1.2, like the inference project's.
Are you smart?|Are you clever?|Do you know everything?|Are you always right?
    => No, I know only a few things. I am a small demo model.
Which domains do you know?|What domains can you classify?|List the domains
    => {domains}.
"""


def facts(labels):
    """(phrasings, answer) pairs: what is asked, in every trained wording, and the one right answer."""
    for line in LINES.strip().replace("\n    =>", " =>").splitlines():
        if line:
            questions, answer = line.split(" => ")
            yield (
                questions.split("|"),
                answer.replace("{domains}", ", ".join(labels[:-1]) + " and " + labels[-1]),
            )
    for country, city in CAPITALS.items():
        yield (
            [
                f"What is the capital of {country}?",
                f"Which city is the capital of {country}?",
                f"Capital of {country}?",
                f"Name the capital of {country}",
                f"Tell me the capital of {country}",
                f"Do you know the capital of {country}?",
                f"What is {country}'s capital?",
                f"{country} capital?",
            ],
            f"The capital of {country} is {city.rstrip('.')}.",
        )
        yield (
            [
                f"{city} is the capital of which country?",
                f"Which country has {city} as its capital?",
                f"Of which country is {city} the capital?",
            ],
            f"{city} is the capital of {country}.",
        )
    for thing, colour in COLOURS.items():
        verb = f"{thing[0].upper()}{thing[1:]} is {colour}."
        yield (
            [
                f"What colour is {thing}?",
                f"What color is {thing}?",
                f"Which colour is {thing}?",
                f"What is the colour of {thing}?",
            ],
            verb,
        )
    for (one, other), colour in MIXTURES.items():
        yield (
            [
                f"What do you get when you mix {x} and {y}?{tail}"
                for x, y in ((one, other), (other, one))
                for tail in ("",)
            ]
            + [f"What colour do {x} and {y} make?" for x, y in ((one, other), (other, one))],
            f"{one.capitalize()} and {other} make {colour}.",
        )
    for names, kind in ((DAYS, "day"), (MONTHS, "month")):
        for here, after in zip(names, names[1:] + names[:1]):
            yield (
                [
                    f"Which {kind} comes after {here}?",
                    f"What {kind} is after {here}?",
                    f"What comes after {here}?",
                ],
                f"{after} comes after {here}.",
            )
            yield (
                [
                    f"Which {kind} comes before {after}?",
                    f"What {kind} is before {after}?",
                    f"What comes before {after}?",
                ],
                f"{here} comes before {after}.",
            )
    for ordinal, planet in zip(ORDINALS, PLANETS):
        yield (
            [f"What is the {ordinal} planet?", f"Which planet is the {ordinal} from the sun?"],
            f"{planet} is the {ordinal} planet from the sun.",
        )
    for ordinal, month in zip(ORDINALS, MONTHS):
        yield (
            [f"What is the {ordinal} month?", f"Which month is the {ordinal} of the year?"],
            f"{month} is the {ordinal} month of the year.",
        )
    for one, other in OPPOSITES:
        for x, y in ((one, other), (other, one)):
            yield [f"What is the opposite of {x}?", f"Opposite of {x}?"], f"The opposite of {x} is {y}."
    for question, answer in COUNTS.items():
        short = question.replace(" are in ", " in ").replace(" are there", "")
        yield [f"How many {question}?", f"How many {short}?", f"Tell me how many {question}"], answer


def _words(block):
    return [" ".join(entry.split()) for entry in block.split(";") if entry.strip()]


UNKNOWN_PLACES = _words("""Albania; Algeria; Angola; Armenia; Bahrain; Bangladesh; Bolivia; Botswana;
    Bulgaria; Cambodia; Cameroon; Chad; Colombia; Congo; Costa Rica; Cyprus; Ecuador; Ethiopia; Fiji;
    Gabon; Georgia; Ghana; Guatemala; Haiti; Honduras; Indonesia; Iran; Iraq; Israel; Jamaica; Jordan;
    Kazakhstan; Korea; Kuwait; Laos; Lebanon; Libya; Lithuania; Madagascar; Malaysia; Mali; Malta;
    Moldova; Morocco; Namibia; Nepal; New Zealand; Nigeria; Oman; Pakistan; Panama; Paraguay; Qatar;
    Romania; Rwanda; Samoa; Senegal; Serbia; Slovakia; Slovenia; Somalia; Sudan; Syria; Tanzania; Togo;
    Tunisia; Uganda; Uruguay; Venezuela; Vietnam; Yemen; Zambia; Zimbabwe; the moon; Texas; California;
    Bavaria; Wales; Atlantis; Africa; Asia; Europe; Siberia; Tibet; Hawaii; Alaska; Florida; Sicily;
    Crete; Corsica; Provence; Tuscany; Naboo; Narnia; Gotham; the North Pole; Antarctica; Mordor; Paris;
    Berlin; London; Madrid; Hamburg; Lyon; Milan; Boston; Chicago; Seattle""")

UNKNOWN_PEOPLE = _words("""Mozart; Beethoven; Einstein; Newton; Shakespeare; Picasso; Marie Curie; Darwin;
    Goethe; Kafka; Tolstoy; Homer; Plato; Aristotle; Columbus; Gandhi; Mandela; Lincoln; Washington;
    Churchill; Elvis; Madonna; Ronaldo; Messi; my neighbour; my uncle; your boss; John Smith; Anna; Peter;
    Maria; Tom; Alice and Bob; the king of Sweden; the pope; the author of this book; Rembrandt; Bach;
    Chopin; Galileo; Tesla; Edison; Turing; Ada Lovelace; Hemingway; Jane Austen; Dickens; Van Gogh;
    Michelangelo; Dante; Voltaire; Nietzsche; Freud; Lenin""")

UNKNOWN_THINGS = _words("""a car; a house; a bicycle; my phone; the book; a computer; the world cup; the
    film; the lottery; a ticket to the show; the train; a horse; chess; poker; the internet; the
    telephone; the steam engine; paper; the wheel; philosophy; mathematics; love; time; happiness; the
    universe; a volcano; an earthquake; a whale; an octopus; a dragon; a unicorn; bitcoin; the dishwasher;
    the garden; roses; a cactus; my shoes; a violin; the news; a lawyer; a contract; taxes; the pyramids;
    the Colosseum; the Great Wall; a bridge; a rocket; the tower; the river Nile; the Amazon; a shark; an
    apple tree; a fridge; a washing machine; the pot; concrete; glass; steel; uranium; helium; gold;
    plastic; silk; cotton; a sonnet; a novel; the guitar; a pancake; a wedding; Java; Haskell; Docker;
    Linux; Windows; a compiler; SQL; an eclipse; a tsunami; a fraction; an integral; algebra; geometry; a
    verb; a noun; grammar; an economy; inflation; democracy; the law; my password; my birthday; my name;
    my address; your mother; the boss; dinner; the meeting; the weather; the bus; the bank; a hotel""")

UNKNOWN_TEMPLATES = _words("""What is the capital of {place}?; Which city is the capital of {place}?;
    Capital of {place}?; How many people live in {place}?; What is the population of {place}?; What is the
    currency of {place}?; Who is the president of {place}?; Who governs {place}?; How far is {place} from
    here?; How big is {place}?; Where is {place}?; What language do they speak in {place}?; How is life in
    {place}?; What is the weather in {place}?; What time is it in {place}?; When should I go to {place}?;
    Tell me about {place}; What is {place} famous for?; Who is the queen of {place}?; What is the flag of
    {place}?; What is the largest city in {place}?; How do I get to {place}?; Who is {person}?; Who was
    {person}?; When was {person} born?; Where was {person} born?; What did {person} invent?; How old is
    {person}?; What did {person} write?; Where does {person} live?; Is {person} alive?; Tell me about
    {person}; What would {person} say?; Do you know {person}?; When did {person} die?; What is the phone
    number of {person}?; Who married {person}?; Write a letter to {person}; What is {thing}?; How does
    {thing} work?; Who invented {thing}?; How much does {thing} cost?; How old is {thing}?; Where can I
    buy {thing}?; Why do we need {thing}?; How do I repair {thing}?; How do I make {thing}?; Write a poem
    about {thing}; Write a story about {thing}; Explain {thing}; Describe {thing}; What colour is
    {thing}?; What color is {thing}?; How heavy is {thing}?; How tall is {thing}?; How long is {thing}?;
    Who wrote {thing}?; Who painted {thing}?; When was {thing} invented?; Where did I leave {thing}?; Who
    won {thing}?; Should I buy {thing}?; Can you draw {thing}?; What is the opposite of {thing}?; What
    rhymes with {thing}?; Tell me about {thing}; What comes after {thing}?; What is the best {word}?; What
    does {word} mean?; Translate {word} into French; Translate {word} into {word}; How do you say {word}
    in German?; How do you spell {word}?; Define {word}; Is {thing} better than {thing}?; What is the
    difference between {thing} and {thing}?; Summarise {thing} for me; Give me a recipe for {word}; Give
    me three ideas for {thing}; What do you think about {thing}?; Do you like {thing}?; What is the
    meaning of {thing}?; Why is {thing} so {word}?; Why do people like {thing}?; When does {thing} start?;
    When does {thing} leave?; How many {word} are in {thing}?; How many legs does {thing} have?; How many
    {word} are there?; What is my {word}?; What did I {word} yesterday?; Who is my {word}?; Can you call
    {person}?; Please book {thing}; Play {word}; Search for {thing}; Open {word}; Which {word} should I
    {word}?; What happened in {year}?; Who won the {word} in {year}?; What is the square root of
    {number}?; Is {number} a prime number?; What is {number} divided by {digit}?; {number} / {digit}; What
    is {number}/{digit}?; What is half of {number}?; What is {digit} squared?; What is {digit} + {digit} +
    {digit}?; {digit}+{digit}+{digit}; {digit} + {digit} + {digit}; {digit} plus {digit} plus {digit};
    {digit}-{digit}-{digit}; {digit}*{digit}*{digit}; {digit}/{digit}; What is {digit}/{digit}?; What is
    {digit}+{digit}+{digit}?; What is {digit}+{digit} and {digit}+{digit}?; {digit} + {digit} - {digit};
    {digit} divided by {digit}; What is {digit} to the power of {digit}?; What is {big} + {big}?; What is
    {big} - {number}?; What is {number} * {big}?; What is {digit} percent of {number}?; Solve x + {digit}
    = {number}; What is the {word} of {word}?; Which planet has {word}?; What is the formula of {word}?;
    What is the chemical symbol of {word}?; What does a {word} say?; What is a {word}?; Is it going to
    {word}?; Are there {word} in {place}?; Does {person} like {thing}?; Why do {word} {word}?; What are
    the symptoms of {word}?; Which {word} is the {word}?; I like {thing}.; I am from {place}.; My name is
    {person}.; I saw {thing} in {place}.; {person} likes {thing}.; {word} {word}; {word}; {word} {word}
    {word}; {thing}; {place}; {person}; The {word} is {word}.; Will {person} {word}?; Fix {thing}; Which
    team plays in {place}?; What is the name of {thing}?; What is the name of {person}?; Explain how
    {thing} works; Make a plan for {thing}; How do I {word} {thing}?; How do I open {thing}?; How do I
    learn {word}?; What is the fastest way to {word}?; What will {thing} do tomorrow?; How far is it from
    {place} to {place}?; Tell me about your {word}; What is your favourite {word}?; Where do you keep
    {thing}?; Can you {word} {thing}?; Is {thing} {word}?; Which {word} can I {word} tonight?; What is
    {thing} under {number} euros?; Sing a song about {word}""")

UNKNOWN_WORDS = _words("""apple; quantum; recipe; window; freedom; zebra; dream; running; silver;
    painting; theatre; lasagne; mirror; castle; button; river; forest; harvest; candle; letter; winter
    coat; secret; journey; whisper; mountain bike; shadow; engine; chess; violin; sculpture; haiku; novel;
    philosophy; kindness; thunderbolt; garden; kitchen; football; number; colour; story; poem; film;
    answer; question; teacher; friend; doctor; salary; house; birthday; password; telephone; cheap;
    expensive; beautiful; important; green; slow; better; run; jump; eat; buy; see; cook; learn; write;
    sleep; win; lose; fly; cats; dogs; birds; stars; people; cars; trees; cities; books; games; wolf; fox;
    lion; tiger; horse; sheep; iron; copper; zinc; salt; sulphur; fever; measles; cough; Spanish; Italian;
    Latin; Greek; Chinese; blog; laptop; camera; watch; shirt; hat; ring; rain""")
